"""`nightjar alerts`."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_note, print_rows, stdout

EXAMPLE = "nightjar alerts preview --nights 30; nightjar alerts test mail"
SHOWN_DELIVERIES = 20  # on screen; --json has all


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    PREVIEW = "preview"
    SEND = "send"
    TEST = "test"


def alerts(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.LIST,
    channel: Annotated[str | None, typer.Argument(help="With test: the channel.", metavar="CHANNEL")] = None,
    nights: Annotated[int, typer.Option(min=1, max=366, help="With preview: the number of last nights.")] = 30,
    as_json: Json = False,
) -> None:
    """Show, preview, send or test the messages of alerts.yaml.

    list: those sent, failed or held back.

    preview: how many each rule would have sent in the last nights.

    send: what is new or due now, and what failed before.

    test: one message to a channel.
    """
    if (channel is not None) != (action is Action.TEST):
        raise typer.BadParameter("test needs a channel, and only test takes one", param_hint="CHANNEL")
    {
        Action.LIST: lambda: show_list(as_json),
        Action.PREVIEW: lambda: show_preview(nights, as_json),
        Action.SEND: lambda: send(as_json),
        Action.TEST: lambda: test(channel or "", as_json),
    }[action]()


def show_list(as_json: bool) -> None:
    """Show the deliveries, newest first."""
    from flows.alerts import find_zone
    from flows.config.settings import load_settings
    from tasks.follow_up.deliveries import list_deliveries
    from tasks.stores.warehouse import Warehouse

    warehouse = Warehouse(load_settings().warehouse_url)
    warehouse.migrate()
    found = [asdict(one) for one in list_deliveries(warehouse, None if as_json else SHOWN_DELIVERIES)]
    if as_json:
        print_json({"deliveries": found})
        return
    zone, moments = find_zone(), {"raised": "raised_at", "due": "due_at"}
    for row in found:
        row |= {name: f"{row[of].astimezone(zone):%m-%d %H:%M}" if row[of] else "" for name, of in moments.items()}
        row["message"] = row["title"]
    columns = ("raised", "status", "due", "rule", "channel", "message", "reason")
    print_rows(Table(title=f"messages, newest first (times in {zone})", title_justify="left"), found, columns)


def show_preview(nights: int, as_json: bool) -> None:
    """Show how many messages each rule would have sent."""
    from flows.alerts import preview

    counts, problems = preview(nights)
    if as_json:
        print_json({"nights": nights, "rules": counts, "problems": problems})
        return
    for problem in problems:
        print_note(problem)
    if not counts:
        print_note("without rules in alerts.yaml nobody is told of anything: docs/alerts.md")
        return
    rows = [{"rule": rule} | row for rule, row in counts.items()]
    title = f"messages that each rule would have sent in the last {nights} nights"
    print_rows(Table(title=title, title_justify="left"), rows, ("rule", "facts", "messages", "held"))


def send(as_json: bool) -> None:
    """Send what is new or due; exit code 1 if something went wrong."""
    from flows.alerts import tell

    told = tell(is_retry=True)
    if as_json:
        print_json(asdict(told))
    else:
        stdout.print(f"{told.new:,} new, {told.sent:,} sent", highlight=False)
        for problem in told.problems:
            print_note(problem)
    if told.problems:
        raise typer.Exit(1)


def test(channel: str, as_json: bool) -> None:
    """Send one message to a channel. Raises ParamsInvalid or ServiceUnreachable."""
    from flows.alerts import test_channel

    test_channel(channel)
    if as_json:
        print_json({"channel": channel, "sent": True})
    else:
        stdout.print(f"{channel} took the message", highlight=False)
