"""One file per step of the pipeline; the packages below hold what the steps share."""
