"""`nightjar migrate`."""

from flows.cli.options import Json
from flows.cli.screen import print_json, stdout

EXAMPLE = "NIGHTJAR_WAREHOUSE=postgresql+psycopg://OWNER:PASSWORD@HOST/DATABASE nightjar migrate"


def migrate(as_json: Json = False) -> None:
    """Bring the warehouse to the newest schema; on PostgreSQL also grant its roles their rights again."""
    from flows.config.stores import load_stores
    from tasks.stores import faults, warehouse

    engine = warehouse.open_engine(load_stores().warehouse_url)
    before = warehouse.migrate(engine)
    roles, place = warehouse.renew_roles(engine), faults.describe_place(engine.url)
    if as_json:
        print_json({"warehouse": place, "before": before, "schema": warehouse.SCHEMA_VERSION, "roles": roles})
        return
    told = "is" if before == warehouse.SCHEMA_VERSION else f"was {before or 'empty'}, is now"
    stdout.print(f"schema     {told} {warehouse.SCHEMA_VERSION} in {place}", soft_wrap=True, highlight=False)
    if engine.dialect.name == "postgresql":
        none = "left as they are: this login does not own the tables, or may not make roles (docs/warehouses.md)"
        stdout.print(f"roles      {', '.join(roles) or none}", soft_wrap=True, highlight=False)
