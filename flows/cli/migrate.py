"""`nightjar migrate`."""

from flows.cli.options import Json
from flows.cli.screen import print_json, stdout

EXAMPLE = "NIGHTJAR_WAREHOUSE=postgresql+psycopg://OWNER:PASSWORD@HOST/DATABASE nightjar migrate"


def migrate(as_json: Json = False) -> None:
    """Upgrade the warehouse to the newest schema. On PostgreSQL, grant the roles their rights again."""
    from flows.config.settings import load_settings
    from tasks.stores.warehouse import SCHEMA_VERSION, Warehouse

    warehouse = Warehouse(load_settings().warehouse_url)
    before = warehouse.migrate()
    roles, place = warehouse.renew_roles(), warehouse.place
    if as_json:
        print_json({"warehouse": place, "before": before, "schema": SCHEMA_VERSION, "roles": roles})
        return
    change = "is" if before == SCHEMA_VERSION else f"was {before or 'empty'}, is now"
    stdout.print(f"schema     {change} {SCHEMA_VERSION} in {place}", soft_wrap=True, highlight=False)
    if warehouse.engine.dialect.name == "postgresql":
        none = "unchanged: this login does not own the tables or may not create roles (docs/warehouses.md)"
        stdout.print(f"roles      {', '.join(roles) or none}", soft_wrap=True, highlight=False)
