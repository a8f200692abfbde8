"""One file per step of the pipeline, and the shared nouns the steps stand on."""
