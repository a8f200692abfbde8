"""`nightjar init`."""

from typing import Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json
from flows.cli.screen import print_json, print_note, print_rows, stdout

EXAMPLE = "nightjar init cards --source cards.csv --label is_fraud"


SHOWN_COLUMNS = 30  # on screen; --json has everything


def init(
    name: Annotated[str, typer.Argument(help="The new detector's name.", metavar="NAME")],
    source: Annotated[
        str, typer.Option(help="A CSV, Excel, JSON lines or Parquet file, a folder, glob, URL or SQL query.")
    ],
    url: Annotated[str | None, typer.Option(help="The database of an SQL query, e.g. sqlite:///shop.db.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COL", help="The column that marks anomalies.")] = None,
    normal: Annotated[str | None, typer.Option(metavar="VALUE", help="The label's value that means normal.")] = None,
    record_id: Annotated[
        str | None, typer.Option("--id", metavar="COL", help="The column that identifies a row.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COL", help="The column with the event time.")] = None,
    entity: Annotated[
        str | None, typer.Option(metavar="COL", help="The column with whom a row is about: a card, host, customer.")
    ] = None,
    sheet: Annotated[str | None, typer.Option(metavar="SHEET", help="The sheet of a spreadsheet to read.")] = None,
    header: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="The columns' names, for files without a header line.")
    ] = None,
    headed: Annotated[
        bool | None, typer.Option("--has-header/--no-header", help="Whether files have a header line (default: looks).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing section and contract.")] = False,
    as_json: Json = False,
) -> None:
    """Inspect your data and write its params section and contract. Then: nightjar run NAME."""
    if normal is not None and label is None:
        raise typer.BadParameter("it needs --label", param_hint="--normal")
    if header and headed:
        raise typer.BadParameter("it names the columns of files without a header line", param_hint="--header")
    from flows.config.write import QUERY, Layout, init_detector
    from tasks.onboarding.draft import Request

    if (url or QUERY.match(source)) and (sheet or header or headed is not None):
        raise typer.BadParameter("--sheet and --header are for files")
    names = tuple(part.strip() for part in header.split(",")) if header else ()
    request, layout = Request(label, normal, record_id, time, entity), Layout(sheet, names, headed)
    found = init_detector(name, source, url, request, force, layout)
    if as_json:
        print_json(found)
        return
    table = Table(title=f"{name}: columns", title_justify="left")
    print_rows(table, group_columns(found["columns"]), ("column", "kind", "why"))
    print_rows(Table(title="choices", title_justify="left"), found["choices"], ("about", "what", "why"))
    for note in found["notes"]:
        print_note(note)
    for path in found["wrote"]:
        stdout.print(f"{'wrote':<10} {path}", soft_wrap=True, highlight=False, markup=False)
    stdout.print(f"{'next':<10} nightjar run {name}", highlight=False)


def group_columns(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per column; in a wide table, one row per kind and reason."""
    if len(columns) <= SHOWN_COLUMNS:
        return [c | {"why": ": ".join(filter(None, (c["rule"], c["detail"])))} for c in columns]
    groups: dict[tuple[str, str], list[str]] = {}
    for c in columns:
        groups.setdefault((c["kind"], c["rule"]), []).append(c["column"])
    names = {
        key: ", ".join(found[:4]) + f" and {len(found) - 4} more" * (len(found) > 4) for key, found in groups.items()
    }
    return [{"column": text, "kind": kind, "why": rule} for (kind, rule), text in names.items()]
