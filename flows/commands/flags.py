"""Commands for those who judge flags: explain, review, rank."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import Day, Debug, Json, Name
from flows.screen import (
    hush_great_expectations,
    print_causes,
    print_json,
    stdout,
)

app = typer.Typer()


@app.command(epilog="nightjar explain payments 6f1b0c-000017")
def explain(
    name: Name,
    record_id: Annotated[str, typer.Argument()],
    date: Day = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show one record's score, rank and causes, with the model and data version that judged it."""
    from flows.setup import prepare
    from tasks.explain import explain_record

    setup = prepare(name)
    found = explain_record(setup.site, setup.configured.contract, record_id, date.date() if date else None)
    band = setup.configured.detector.score.name_band(found.percentile_rank)
    if as_json:
        print_json(asdict(found) | {"band": band})
        return
    verdict = "flagged" if found.is_flagged else "not flagged"
    stdout.print(f"{record_id}, {found.event_time}, batch {found.batch_date}", markup=False)
    stdout.print(
        f"score {found.score:.4g}, threshold {found.threshold:.4g}: {verdict}; "
        f"rank {found.percentile_rank:.2f}, band {band}, p-value {found.p_value:.2g}"
    )
    print_causes(found.causes)
    stdout.print(f"{found.model} version {found.model_version}, trained on data {found.data_hash[:12]}; "
                 f"input {found.input_hash[:12]}")  # fmt: skip


@app.command(epilog="nightjar review payments --date 2026-11-20 > asked.csv; nightjar review payments --take asked.csv")
def review(
    name: Name,
    date: Day = None,
    sample: Annotated[int | None, typer.Option(min=0, help="Rows besides the alerts; else review.sample.")] = None,
    take: Annotated[Path | None, typer.Option(help="A file written by this command, with verdicts filled in.")] = None,
    by: Annotated[str, typer.Option(help="Who gave the verdicts of --take.")] = "analyst",
    from_labels: Annotated[bool, typer.Option("--from-labels", help="Take known labels for verdicts.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what to judge of a night (the newest unless named) as CSV, or take the verdicts: anomaly or normal."""
    from flows.setup import prepare
    from tasks import review as step

    setup, now = prepare(name), datetime.now(UTC)
    site, params = setup.site, setup.configured.detector.review
    asked = params.sample if sample is None else sample
    if take:
        answers = step.read_answers(take)
    elif from_labels:
        by = "labels"
        nights = [batch.batch_date for batch in step.list_published(site, date.date() if date else None)]
        answers = step.judge_by_labels(step.ask_about_all(site, nights, asked), site, setup.ingest_params, now)
    else:
        night = step.list_published(site, date.date() if date else None)[-1].batch_date
        questions = step.ask_about(site, night, asked)
        if as_json:
            print_json({"detector": name, "questions": questions.to_dict("records")})
        else:
            questions.to_csv(sys.stdout, index=False)
        return
    added = step.keep_verdicts(site, answers, by, now)
    given = answers["verdict"].value_counts()
    counts = {verdict: int(given.get(verdict, 0)) for verdict in (step.ANOMALY, step.NORMAL)}
    if as_json:
        print_json({"detector": name, "new": added, "given": counts})
    else:
        told = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
        stdout.print(f"{added:,} new verdicts of {sum(counts.values()):,}: {told}")


@app.command(epilog='nightjar rank codes --value "code=AB 21 XR GB132"')
def rank(
    name: Name,
    value: Annotated[list[str], typer.Option(help="A column's value; once a column.", metavar="COLUMN=TEXT")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score one record given here with the champion: its rank, severity and causes; nothing lands."""
    from flows.setup import load_setup
    from tasks.rank import rank_by_champion

    if bad := [pair for pair in value if "=" not in pair]:
        raise typer.BadParameter(f"{bad[0]!r} is not COLUMN=TEXT", param_hint="--value")
    values = dict(pair.split("=", 1) for pair in value)
    if len(values) < len(value):
        raise typer.BadParameter("a column is given twice", param_hint="--value")
    setup = load_setup(name)
    hush_great_expectations()
    found = rank_by_champion(setup.site, setup.configured.contract, values, setup.configured.detector.score)
    if as_json:
        print_json(asdict(found))
        return
    stdout.print(f"score {found.score:.4g}, rank {round(found.percentile_rank, 2):g}, band {found.band}", markup=False)
    verdict = "flagged" if found.is_flagged else "not flagged"
    stdout.print(f"threshold {found.threshold:.4g}: {verdict}; p-value {found.p_value:.2g}")
    print_causes(found.causes)
    stdout.print(f"{found.model} version {found.model_version}")
