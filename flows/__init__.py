"""The training, nightly and backfill flows, their params and settings, and the command line."""
