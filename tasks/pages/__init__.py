"""What people look at: Data Docs, pictures and the template of the nightly report."""
