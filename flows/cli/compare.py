"""`nightjar compare`."""

from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.cli.options import Json, Name
from flows.cli.screen import print_json, print_note, print_rows, showing_progress, stdout

if TYPE_CHECKING:
    from tasks.on_demand.compare import Comparison

EXAMPLE = "nightjar compare payments; nightjar compare payments 1 3"


def compare(
    name: Name,
    first: Annotated[int | None, typer.Argument(help="A version (default: the champion).", metavar="A")] = None,
    second: Annotated[int | None, typer.Argument(help="Another (default: the challenger).", metavar="B")] = None,
    nights: Annotated[int, typer.Option(min=1, help="The newest common nights to judge, at most.")] = 7,
    as_json: Json = False,
) -> None:
    """Judge the same later nights with two versions: alerts, errors, answers known, records that change side."""
    from flows.config.setup import prepare_reading
    from tasks.errors import ServiceUnreachable
    from tasks.on_demand.compare import choose_versions, compare_versions, list_refusals
    from tasks.on_demand.standing import keep_comparison
    from tasks.policy import progress_of
    from tasks.register import describe_lost_reducer

    setup = prepare_reading(name)
    pair = choose_versions(setup.site, first, second)
    has_labels = setup.configured.detector.ingest.has_labels
    with showing_progress():
        now, progress = datetime.now(UTC), progress_of("compare")
        canaries = setup.configured.detector.monitor.canaries
        found = compare_versions(setup.site, setup.record_rule, pair, has_labels, now, nights, progress, canaries)
    with suppress(ServiceUnreachable):  # a login that may only read can still compare
        keep_comparison(setup.site, pair, found, now)
    note, gate = describe_lost_reducer(*pair), setup.configured.detector.promote.gate
    refusals = list_refusals(setup.site, gate, found)
    if as_json:
        print_json(asdict(found) | {"note": note, "refusals": refusals})
        return
    show_comparison(found)
    if gate:
        stdout.print(f"gate       {'; '.join(refusals) or 'passed'}", soft_wrap=True)
    if note:
        print_note(note)


def show_comparison(found: "Comparison") -> None:
    """Print both versions side by side, how far they agree, and the records that change side."""
    from tasks.on_demand.compare import describe_overlap, describe_sides, name_span

    first, second = found.first, found.second
    names = (f"version {first.version}", f"version {second.version}")
    rows = [dict(zip(("", *names), line, strict=True)) for line in describe_sides(found)]
    print_rows(Table(title=name_span(found), title_justify="left"), rows, ("", *names))
    stdout.print(
        f"answers    {found.answers:,} rows have a verdict or a matured night; {found.anomalies:,} anomalies are known"
    )
    stdout.print(f"flags      {describe_overlap(found.flags, names)}", soft_wrap=True)
    stdout.print(f"alerts     {describe_overlap(found.alerts, names)}", soft_wrap=True)
    if not found.changed:
        return
    changed = [
        {
            "batch_date": record["batch_date"],
            "record_id": record["record_id"],
            "entity": record["entity"],
            "answer": record["answer"],
            names[0]: describe_record(record["first"]),
            names[1]: describe_record(record["second"]),
        }
        for record in found.changed
    ]
    entity = ("entity",) if any(record["entity"] for record in found.changed) else ()
    answer = ("answer",) if any(record["answer"] for record in found.changed) else ()
    total = found.alerts.only_first + found.alerts.only_second
    title = f"{len(changed)} of {total:,} records that change side, with score / threshold"
    print_rows(Table(title=title, title_justify="left"), changed, ("batch_date", "record_id", *entity, *answer, *names))


def describe_record(judged: dict[str, Any]) -> str:
    """One version's judgement of a record, such as "1.3, alert"."""
    mark = ", alert" if judged["is_alert"] else ", suppressed" if judged["is_suppressed"] else ""
    return f"{judged['times_threshold']:.3g}{mark}"
