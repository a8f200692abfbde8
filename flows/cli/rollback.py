"""`nightjar rollback`."""

from flows.cli.options import Json, Name
from flows.cli.promote import print_alias

EXAMPLE = "nightjar rollback payments"


def rollback(name: Name, as_json: Json = False) -> None:
    """Make the previous champion the champion again."""
    from flows.config.setup import prepare_reading
    from tasks import register

    champion, before = register.rollback(prepare_reading(name).site)
    print_alias(name, champion, before, as_json)
