"""One file per schema step, written by hand: DuckDB cannot be reflected, so Alembic cannot generate them."""
