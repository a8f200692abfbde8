"""Alembic's entry: runs the steps on the connection that `tasks.stores.warehouse.migrate` hands over.

The caller owns the transaction and its lock, so a step that fails leaves the schema as it was.
"""

from alembic import context
from alembic.ddl.impl import DefaultImpl


class DuckImpl(DefaultImpl):
    """Makes DuckDB known to Alembic (by being defined) and says that its DDL rolls back."""

    __dialect__ = "duckdb"
    transactional_ddl = True


class SnowflakeImpl(DefaultImpl):
    """Makes Snowflake known to Alembic; its DDL commits by itself."""

    __dialect__ = "snowflake"


context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
