"""One file per migration, written by hand: Alembic cannot generate them, because it cannot inspect DuckDB."""
