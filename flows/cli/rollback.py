"""`nightjar rollback`."""

from flows.cli.options import Json, Name, Reason, sign_reason
from flows.cli.promote import print_change

EXAMPLE = "nightjar rollback payments"


def rollback(name: Name, reason: Reason = "", as_json: Json = False) -> None:
    """Make the previous champion the champion again."""
    from flows.config.setup import prepare_reading
    from tasks import register

    site = prepare_reading(name).site
    print_change(site, *register.rollback(site, sign_reason(reason)), as_json)
