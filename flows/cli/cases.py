"""`nightjar cases`."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_csv, print_json, print_rows, stdout

EXAMPLE = "nightjar cases payments; nightjar cases payments --entity CARD; nightjar cases payments --all --csv"
COLUMNS = ("case", "severity", "entity", "flags", "nights", "worst_rank", "cause", "state", "assignee", "due_date")
SHOWN_CASES = 30  # on screen; --csv and --json have all


def cases(
    name: Name,
    state: Annotated[
        Literal["open", "snoozed", "closed"] | None, typer.Option(help="Only those in this state (default: open).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Closed and snoozed ones too.")] = False,
    entity: Annotated[str | None, typer.Option(help="Only those of this entity, closed ones too.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """List the open cases, worst first: the flags of one entity that wait for a person together."""
    import pandas as pd

    from flows.config.setup import prepare_reading
    from tasks.on_demand.cases import list_cases

    if as_csv and as_json:
        raise typer.BadParameter("give one of --csv and --json")
    if everything and state:
        raise typer.BadParameter("give one of --all and --state")
    setup = prepare_reading(name)
    wanted = state or (None if everything or entity else "open")
    found = list_cases(setup.site, setup.record_rule, datetime.now(UTC), wanted, entity)
    if as_json:
        print_json({"detector": name, "cases": found})
    elif as_csv:
        print_csv(pd.DataFrame(found))
    else:
        kind = f"{wanted} case" if wanted else "case"
        show_cases(f"{name}: {count(len(found), kind)}", found)


def show_cases(title: str, found: list[dict[str, Any]]) -> None:
    """Print the first cases as a table."""
    overdue = sum(case["is_overdue"] for case in found)
    rows = [
        case
        | {
            "entity": case["entity"] or case["record_id"],
            "worst_rank": case["worst_rank"] and f"{case['worst_rank']:.3f}",
            "cause": case["likeliest_cause"],
            "state": describe_state(case),
            "due_date": "" if case["closed_at"] else describe_due(case),
        }
        for case in found[:SHOWN_CASES]
    ]
    title += f", {overdue:,} overdue" if overdue else ""
    if rows:
        same = {"state"} if {row["state"] for row in rows} == {"open"} else set()
        same |= set() if any(row["assignee"] for row in rows) else {"assignee"}
        columns = tuple(column for column in COLUMNS if column not in same)
        print_rows(Table(title=title, title_justify="left"), rows, columns)
    else:
        stdout.print(title, style="bold")
    if len(found) > SHOWN_CASES:
        stdout.print(f"{len(found) - SHOWN_CASES:,} more: --csv or --json")


def count(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def describe_state(case: dict[str, Any]) -> str:
    """A case's state, with what explains it."""
    if case["merged_into"]:
        return f"merged into {case['merged_into']}"
    if case["snoozed_until"]:
        return "snoozed"
    return str(case["verdict"] or case["state"])


def describe_due(case: dict[str, Any]) -> str:
    """When a case is due, local time, and whether that has passed."""
    due = str(case["due_at"])[:16].replace("T", " ")
    return f"{due} overdue" if case["is_overdue"] else due
