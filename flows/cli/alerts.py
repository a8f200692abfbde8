"""`nightjar alerts`."""

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_note, print_rows, stdout

EXAMPLE = "nightjar alerts preview --nights 30; nightjar alerts test mail; nightjar alerts snooze late --for 8h"
SPAN = re.compile(r"(\d{1,4})([mhd])")  # minutes, hours, days
UNITS = {"m": "minutes", "h": "hours", "d": "days"}
SHOWN_DELIVERIES = 20  # on screen; --json has all


class Action(StrEnum):
    """What to do."""

    LIST = "list"
    PREVIEW = "preview"
    SEND = "send"
    SNOOZE = "snooze"
    TEST = "test"


def alerts(
    action: Annotated[Action, typer.Argument(help="What to do.")] = Action.LIST,
    name: Annotated[
        str | None, typer.Argument(help="With test: the channel; with snooze: the rule.", metavar="NAME")
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"],
            metavar="YYYY-MM-DDTHH:MM",
            help="With snooze: the end, in the time zone of alerts.yaml; one that is over ends the snooze.",
        ),
    ] = None,
    span: Annotated[
        str | None, typer.Option("--for", metavar="SPAN", help="With snooze: how long, such as 30m, 8h or 2d.")
    ] = None,
    nights: Annotated[int, typer.Option(min=1, max=366, help="With preview: the number of last nights.")] = 30,
    as_json: Json = False,
) -> None:
    """Show, preview, send, snooze or test the messages of alerts.yaml.

    list: those sent, failed or held back.

    preview: how many each rule would have sent in the last nights.

    send: what is new or due now, and what failed before.

    snooze: write into alerts.yaml that a rule sends nothing about what happens until then.

    test: one message to a channel.
    """
    if (name is not None) != (action in (Action.TEST, Action.SNOOZE)):
        raise typer.BadParameter("test needs a channel and snooze a rule, and only they take one", param_hint="NAME")
    if ((until is None) == (span is None)) == (action is Action.SNOOZE) or (until and span):
        raise typer.BadParameter("snooze needs one of --until and --for, and only snooze takes them")
    {
        Action.LIST: lambda: show_list(as_json),
        Action.PREVIEW: lambda: show_preview(nights, as_json),
        Action.SEND: lambda: send(as_json),
        Action.SNOOZE: lambda: snooze(name or "", until, span, as_json),
        Action.TEST: lambda: test(name or "", as_json),
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


def snooze(rule: str, until: datetime | None, span: str | None, as_json: bool) -> None:
    """Snooze a rule. Raises ParamsInvalid."""
    from flows.alerts import find_zone
    from flows.config.alerts import snooze_rule
    from flows.config.settings import load_settings

    zone = find_zone()
    if until is None:
        if not (found := SPAN.fullmatch(span or "")):
            raise typer.BadParameter(f"{span!r} is not a number and m, h or d, such as 8h", param_hint="--for")
        end = datetime.now(UTC) + timedelta(**{UNITS[found[2]]: int(found[1])})
        until = end.astimezone(zone).replace(tzinfo=None, second=0, microsecond=0)
    snooze_rule(load_settings(), rule, until)
    if as_json:
        print_json({"rule": rule, "snoozed_until": f"{until:%Y-%m-%dT%H:%M}", "time_zone": str(zone)})
    else:
        stdout.print(f"{rule} is snoozed until {until:%Y-%m-%d %H:%M} ({zone}), in alerts.yaml", highlight=False)


def test(channel: str, as_json: bool) -> None:
    """Send one message to a channel. Raises ParamsInvalid or ServiceUnreachable."""
    from flows.alerts import test_channel

    test_channel(channel)
    if as_json:
        print_json({"channel": channel, "sent": True})
    else:
        stdout.print(f"{channel} took the message", highlight=False)
