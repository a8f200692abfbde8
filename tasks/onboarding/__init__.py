"""What `nightjar init` derives from new data: column kinds, days, and a draft of a detector."""
