"""`nightjar case`."""

from datetime import UTC, datetime, time
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import typer

from flows.cli.cases import count, describe_due, describe_state
from flows.cli.options import By, Json, Name, date_option, name_person
from flows.cli.screen import print_json, stdout

EXAMPLE = "nightjar case payments 12; nightjar case payments 12 --verdict confirmed --note 'card blocked'"
Verdict = Literal["confirmed", "expected", "false_alarm", "new_trend", "unresolved"]


def case(
    name: Name,
    number: Annotated[int, typer.Argument(min=1, help="The case's number.", metavar="NUMBER")],
    take: Annotated[bool, typer.Option("--take", help="Work on it.")] = False,
    verdict: Annotated[Verdict | None, typer.Option(help="Give a verdict on all its flags, and close it.")] = None,
    close: Annotated[bool, typer.Option("--close", help="Close it without a verdict.")] = False,
    snooze: Annotated[
        datetime | None, date_option("Leave it out of the open ones until this date, or until it gets more severe.")
    ] = None,
    reopen: Annotated[bool, typer.Option("--reopen", help="Open it again.")] = False,
    merge: Annotated[
        int | None, typer.Option(min=1, metavar="OTHER", help="Move its flags into another open case.")
    ] = None,
    note: Annotated[str | None, typer.Option(help="A note, alone or with one of the above.")] = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Show one case with its flags and its history; or take, judge, close, snooze, reopen or merge it."""
    from flows.config.setup import prepare, prepare_reading
    from tasks.follow_up import actions
    from tasks.on_demand.cases import show_case

    asked = [take, verdict is not None, close, snooze is not None, reopen, merge is not None]
    if sum(asked) > 1:
        raise typer.BadParameter("give one of --take, --verdict, --close, --snooze, --reopen and --merge")
    if note is not None and not note.strip():
        raise typer.BadParameter("the note is empty")
    acts = any(asked) or note is not None
    setup = (prepare if acts else prepare_reading)(name)
    site, params = setup.site, setup.configured.detector
    now = datetime.now(UTC)
    if acts:
        desk = actions.Desk(site.warehouse, name, params.cases, name_person(by), now)
        if take:
            actions.take_case(desk, number, note)
        elif verdict:
            actions.judge_case(desk, number, verdict, note)
        elif close:
            actions.close_case(desk, number, note)
        elif snooze:
            until = datetime.combine(snooze.date(), time(), site.zone)
            actions.snooze_case(desk, number, until, note)
        elif reopen:
            actions.reopen_case(desk, number, note)
        elif merge:
            actions.merge_case(desk, number, merge, note)
        elif note:
            actions.note_case(desk, number, note)
    found = show_case(site, params.score, merge or number, now)
    if as_json:
        print_json({"detector": name, **found})
    elif acts:
        stdout.print(summarise(name, found), soft_wrap=True)
    else:
        print_case(name, found, site.zone)


def summarise(name: str, found: dict[str, Any]) -> str:
    """One line: what a case is about and its state."""
    of = found["entity"] and f"entity {found['entity']}"
    until = f" until {found['snoozed_until'][:10]}" if found["snoozed_until"] else ""
    flags = f"{count(found['flags'], 'flag')} of {count(found['nights'], 'night')}"
    facts = [
        f"{name} case {found['case']}: {describe_state(found)}{until}",
        found["severity"],
        of,
        flags,
        found["assignee"] and f"assigned to {found['assignee']}",
        not found["closed_at"] and f"due {describe_due(found)}",
    ]
    return ", ".join(fact for fact in facts if fact)


def print_case(name: str, found: dict[str, Any], zone: ZoneInfo) -> None:
    """Print a case: one line, its flags, and what happened to it."""
    from flows.cli.flags import print_flags

    stdout.print(summarise(name, found), style="bold", soft_wrap=True)
    print_flags(found["records"], zone)
    stdout.print("\nhistory", style="bold")
    for event in found["history"]:
        details = ", ".join(f"{key} {show_detail(value)}" for key, value in event["details"].items())
        when = event["happened_at"][:16].replace("T", " ")
        line = f"{when}  {event['kind']} by {event['actor']}" + (f": {details}" if details else "")
        stdout.print(line, soft_wrap=True)
        if event["note"]:
            stdout.print(f"  {' '.join(event['note'].split())}", soft_wrap=True, style="dim")


def show_detail(value: object) -> object:
    """A detail of an event: yes and no instead of True and False."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
