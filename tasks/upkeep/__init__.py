"""Maintenance of the stores: ledger, verify, replay, backup, prune, erase, metrics."""
