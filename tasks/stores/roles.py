"""PostgreSQL's two group roles: a login with nightjar_writer runs nights, one with nightjar_reader reads the tables.

Neither owns anything, so neither can drop, alter or make a table. Roles belong to the server: another warehouse on it
may have made them, or only an administrator may; what is granted belongs to the database. Other engines have none.
"""

import sqlalchemy as sa

from tasks.stores.tables import metadata

WRITER, READER = "nightjar_writer", "nightjar_reader"
RIGHTS = {WRITER: "select, insert, update, delete", READER: "select"}
VERSION_TABLE = "alembic_version"  # only the owner says which schema this is


def may_migrate(connection: sa.Connection, *, is_new: bool) -> bool:
    """Whether this login may make Nightjar's tables, or owns those that are there."""
    if connection.dialect.name != "postgresql":
        return True
    schema = sa.func.current_schema()
    if is_new:
        return bool(connection.scalar(sa.select(sa.func.has_schema_privilege(schema, "create"))))
    tables = sa.table("pg_tables", *map(sa.column, ("schemaname", "tablename", "tableowner")))
    owned = sa.select(sa.func.pg_has_role(tables.c.tableowner, "usage"))
    return bool(connection.scalar(owned.where(tables.c.schemaname == schema, tables.c.tablename == VERSION_TABLE)))


def grant_roles(connection: sa.Connection) -> list[str]:
    """Make the roles where this login may, give those that exist their rights, and return these.

    Tables that a later migration of this same owner makes are covered too.
    """
    for role in RIGHTS:
        _make_role(connection, role)
    found = _find_roles(connection)
    schema, tables = _name_places(connection)
    for role in found:
        _execute(connection, f"grant usage on schema {schema} to {role}")
        _execute(connection, f"grant {RIGHTS[role]} on table {tables} to {role}")
        _execute(connection, f"grant select on table {VERSION_TABLE} to {role}")
        _execute(connection, f"alter default privileges in schema {schema} grant {RIGHTS[role]} on tables to {role}")
    return found


def revoke_roles(connection: sa.Connection) -> None:
    """Take the rights back; the roles stay, since another database of the server may use them."""
    schema, tables = _name_places(connection)
    for role in _find_roles(connection):
        _execute(connection, f"alter default privileges in schema {schema} revoke all on tables from {role}")
        _execute(connection, f"revoke all on table {tables}, {VERSION_TABLE} from {role}")
        _execute(connection, f"revoke usage on schema {schema} from {role}")


def _make_role(connection: sa.Connection, role: str) -> None:
    # Unique violation: another database of this server is being migrated at the same time.
    known = "duplicate_object or unique_violation or insufficient_privilege"
    _execute(connection, f"do $$ begin create role {role} nologin; exception when {known} then null; end $$")


def _find_roles(connection: sa.Connection) -> list[str]:
    name: sa.ColumnClause[str] = sa.column("rolname")
    found = connection.scalars(sa.select(name).select_from(sa.table("pg_roles")).where(name.in_(RIGHTS)))
    return sorted(found, reverse=True)


def _name_places(connection: sa.Connection) -> tuple[str, str]:
    """The schema and those of Nightjar's tables that it has by now, quoted."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    there = sa.inspect(connection).get_table_names()
    schema = connection.scalar(sa.select(sa.func.current_schema()))
    return quote(str(schema)), ", ".join(quote(name) for name in metadata.tables if name in there)


def _execute(connection: sa.Connection, statement: str) -> None:
    connection.execute(sa.text(statement))
