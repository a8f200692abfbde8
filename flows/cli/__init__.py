"""The `nightjar` command: one file per verb, with the verb's name; slow imports go inside the function."""
