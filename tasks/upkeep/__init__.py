"""What keeps the stores in order after the night: ledger, verify, replay, backup, prune, erase, metrics."""
