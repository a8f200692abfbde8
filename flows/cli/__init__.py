"""The `nightjar` command: a file for each verb, named like it; slow imports happen inside its function."""
