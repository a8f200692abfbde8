"""Pages for people: Data Docs, pictures and the template of the nightly report."""
