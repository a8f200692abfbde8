"""Commands that begin or examine a detector: init, fetch, doctor, stage."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flows.commands.options import Debug, Json, Name
from flows.screen import print_json, print_rows, running, stdout

app = typer.Typer()
Step = Literal["ingest", "validate", "filter", "train", "calibrate", "evaluate"]
SHOWN_COLUMNS = 30  # on screen; --json has everything


@app.command(epilog="nightjar init cards --source cards.csv --label is_fraud")
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
    debug: Debug = False,
) -> None:
    """Look at your own data and write its params section and contract; then nightjar run NAME."""
    if normal is not None and label is None:
        raise typer.BadParameter("it needs --label, whose value it is", param_hint="--normal")
    from flows.init import init_detector
    from tasks.draft import Asked

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


@app.command(epilog="nightjar fetch kddcup99")
def fetch(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Bring a public data set from its home to the sources folder; what is there already is left alone."""
    from flows.settings import load_settings
    from tasks.fetch import fetch_public

    sources = Path(load_settings().sources)
    fetched = fetch_public(name, sources)
    if as_json:
        print_json({"detector": name, "fetched": fetched})
        return
    for path, is_new in fetched.items():
        stdout.print(f"{sources / path}: {'fetched' if is_new else 'there already'}", highlight=False, soft_wrap=True)


@app.command(epilog="nightjar doctor payments")
def doctor(name: Name, as_json: Json = False, debug: Debug = False) -> None:
    """Check params, contract, source, lake, warehouse, MLflow, champion and device, one line each.

    Other detectors that cannot be loaded are named too; they do not make the check fail.
    """
    from flows.doctor import examine

    findings = examine(name)
    if as_json:
        print_json({"detector": name, "checks": [asdict(finding) for finding in findings]})
    else:
        rows = [
            {"check": f.check, "result": "ok" if f.ok else "FAILED" if f.needed else "broken", "detail": f.detail}
            for f in findings
        ]
        print_rows(Table(title=f"doctor {name}", title_justify="left"), rows, ("check", "result", "detail"))
    if not all(finding.ok or not finding.needed for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="dvc repro evaluate@payments")
def stage(
    step: Annotated[
        Step, typer.Argument(help="ingest, validate, filter, train, calibrate or evaluate.", metavar="STEP")
    ],
    name: Name,
    debug: Debug = False,
) -> None:
    """Run one stage of dvc.yaml by hand, in experiments/NAME; `dvc repro` runs those that are due."""
    from flows.experiment import STAGES

    with running():
        STAGES[step](name)


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
