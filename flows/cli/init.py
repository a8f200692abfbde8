"""`nightjar init`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_rows, stdout

EXAMPLE = "nightjar init cards --source cards.csv --label is_fraud"


SHOWN_COLUMNS = 30  # on screen; --json has everything


def init(
    name: Annotated[str, typer.Argument(help="A name for the new detector.", metavar="NAME")],
    source: Annotated[str, typer.Option(help="A CSV or Parquet file, a folder, a glob, a URL, or an SQL query.")],
    url: Annotated[str | None, typer.Option(help="Where an SQL query is asked, such as sqlite:///shop.db.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COL", help="Says which rows are anomalous.")] = None,
    normal: Annotated[str | None, typer.Option(metavar="VALUE", help="The label's value that means normal.")] = None,
    record_id: Annotated[str | None, typer.Option("--id", metavar="COL", help="Names the rows.")] = None,
    time: Annotated[str | None, typer.Option(metavar="COL", help="Says when a row happened.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the detector's section and contract.")] = False,
    as_json: Json = False,
) -> None:
    """Look at your own data and write its params section and contract; then nightjar run NAME."""
    if normal is not None and label is None:
        raise typer.BadParameter("it needs --label, whose value it is", param_hint="--normal")
    from flows.config.write import init_detector
    from tasks.onboarding.draft import Asked

    told = init_detector(name, source, url, Asked(label, normal, record_id, time), force)
    if as_json:
        print_json(told)
        return
    table = Table(title=f"{name}: what its columns are taken for", title_justify="left")
    print_rows(table, group_columns(told["columns"]), ("column", "kind", "why"))
    print_rows(Table(title="what was decided", title_justify="left"), told["choices"], ("about", "what", "why"))
    for note in told["notes"]:
        stdout.print(f"{'note':<10} {note}", style="yellow", highlight=False, markup=False)
    for path in told["wrote"]:
        stdout.print(f"{'wrote':<10} {path}", soft_wrap=True, highlight=False, markup=False)
    stdout.print(f"{'next':<10} nightjar run {name}", highlight=False)


def group_columns(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a column; of a wide table one row for all columns of the same kind and reason."""
    if len(columns) <= SHOWN_COLUMNS:
        return [c | {"why": ": ".join(filter(None, (c["rule"], c["detail"])))} for c in columns]
    groups: dict[tuple[str, str], list[str]] = {}
    for c in columns:
        groups.setdefault((c["kind"], c["rule"]), []).append(c["column"])
    told = {
        key: ", ".join(names[:4]) + f" and {len(names) - 4} more" * (len(names) > 4) for key, names in groups.items()
    }
    return [{"column": names, "kind": kind, "why": rule} for (kind, rule), names in told.items()]
