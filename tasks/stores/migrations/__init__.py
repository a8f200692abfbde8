"""The warehouse's schema migrations, shipped in the package so that an installed Nightjar can migrate."""
