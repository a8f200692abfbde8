"""Alembic's entry point: runs the migrations on the connection that `tasks.stores.warehouse.migrate` passes in.

The caller owns the transaction and its lock, so a failed migration leaves the schema unchanged.
"""

from alembic import context
from alembic.ddl.impl import DefaultImpl


class DuckImpl(DefaultImpl):
    """Registers DuckDB with Alembic, as a database whose DDL can be rolled back."""

    __dialect__ = "duckdb"
    transactional_ddl = True


class SnowflakeImpl(DefaultImpl):
    """Registers Snowflake with Alembic; its DDL commits implicitly."""

    __dialect__ = "snowflake"


context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
