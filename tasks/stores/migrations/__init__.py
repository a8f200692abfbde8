"""The warehouse's schema, step by step, in the package so that an installed Nightjar can migrate."""
