"""PostgreSQL's two group roles: a login with nightjar_writer runs nights, one with nightjar_reader reads the tables.

Neither role owns anything, so neither can drop, alter or create a table. Roles belong to the server: another warehouse
on it may have created them, or only an administrator may. Grants belong to the database. Other engines have no roles.
"""

import sqlalchemy as sa

from tasks.stores.tables import metadata

WRITER, READER = "nightjar_writer", "nightjar_reader"
RIGHTS = {WRITER: "select, insert, update, delete", READER: "select"}
VERSION_TABLE = "alembic_version"  # only the owner may change the schema version


def may_migrate(connection: sa.Connection, *, is_new: bool) -> bool:
    """Whether this login may create Nightjar's tables, or owns the existing ones."""
    if connection.dialect.name != "postgresql":
        return True
    schema = sa.func.current_schema()
    if is_new:
        return bool(connection.scalar(sa.select(sa.func.has_schema_privilege(schema, "create"))))
    tables = sa.table("pg_tables", *map(sa.column, ("schemaname", "tablename", "tableowner")))
    owned = sa.select(sa.func.pg_has_role(tables.c.tableowner, "usage"))
    return bool(connection.scalar(owned.where(tables.c.schemaname == schema, tables.c.tablename == VERSION_TABLE)))


def grant_roles(connection: sa.Connection) -> list[str]:
    """Create the roles if this login may, grant the existing roles their rights, and return those.

    Tables that a later migration by the same owner creates are covered too.
    """
    for role in RIGHTS:
        _create_role(connection, role)
    found = _find_roles(connection)
    schema, tables = _name_places(connection)
    for role in found:
        _execute(connection, f"grant usage on schema {schema} to {role}")
        _execute(connection, f"grant {RIGHTS[role]} on table {tables} to {role}")
        _execute(connection, f"grant select on table {VERSION_TABLE} to {role}")
        _execute(connection, f"alter default privileges in schema {schema} grant {RIGHTS[role]} on tables to {role}")
    return found


def revoke_roles(connection: sa.Connection) -> None:
    """Revoke the rights; the roles stay, since another database of the server may use them."""
    schema, tables = _name_places(connection)
    for role in _find_roles(connection):
        _execute(connection, f"alter default privileges in schema {schema} revoke all on tables from {role}")
        _execute(connection, f"revoke all on table {tables}, {VERSION_TABLE} from {role}")
        _execute(connection, f"revoke usage on schema {schema} from {role}")


def _create_role(connection: sa.Connection, role: str) -> None:
    # Unique violation: another database of this server is being migrated at the same time.
    known = "duplicate_object or unique_violation or insufficient_privilege"
    _execute(connection, f"do $$ begin create role {role} nologin; exception when {known} then null; end $$")


def _find_roles(connection: sa.Connection) -> list[str]:
    name: sa.ColumnClause[str] = sa.column("rolname")
    found = connection.scalars(sa.select(name).select_from(sa.table("pg_roles")).where(name.in_(RIGHTS)))
    return sorted(found, reverse=True)


def _name_places(connection: sa.Connection) -> tuple[str, str]:
    """The schema, and Nightjar's tables that exist in it, quoted."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    there = sa.inspect(connection).get_table_names()
    schema = connection.scalar(sa.select(sa.func.current_schema()))
    return quote(str(schema)), ", ".join(quote(name) for name in metadata.tables if name in there)


def _execute(connection: sa.Connection, statement: str) -> None:
    connection.execute(sa.text(statement))
