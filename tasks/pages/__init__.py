"""Pages for people: the template of the nightly report, the page of a validated batch, and pictures."""
