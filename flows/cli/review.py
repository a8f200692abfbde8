"""`nightjar review`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import By, Json, Name, date_option, name_person
from flows.cli.screen import print_csv, print_json, stdout

EXAMPLE = "nightjar review payments > asked.csv; nightjar review payments --take asked.csv"


def review(
    name: Name,
    date: Annotated[datetime | None, date_option("The batch date (default: the newest).")] = None,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Number of rows in addition to the alerts (default: review.sample).")
    ] = None,
    take: Annotated[Path | None, typer.Option(help="A file written by this command, with verdicts filled in.")] = None,
    by: By = None,
    from_labels: Annotated[bool, typer.Option("--from-labels", help="Use known labels as verdicts.")] = False,
    as_json: Json = False,
) -> None:
    """List the records to review as CSV, or store their verdicts.

    Verdicts are anomaly or normal; confirmed, expected, false_alarm, new_trend or unresolved; and withdrawn if one was
    wrong.
    """
    from flows.config.setup import prepare, prepare_reading
    from tasks import review as step
    from tasks.follow_up.cases import LABELS, MEANING

    setup = (prepare if take or from_labels else prepare_reading)(name)
    now, day = datetime.now(UTC), date.date() if date else None
    site, params = setup.site, setup.configured.detector.review
    asked = params.sample if sample is None else sample
    if take:
        answers, reviewer = step.read_answers(take), name_person(by)
    elif from_labels:
        reviewer = LABELS
        nights = [night.batch_date for night in site.warehouse.get_nights(name, day)]
        answers = step.judge_by_labels(step.ask_about_all(site, nights, asked), site, setup.ingest_params, now)
    else:
        questions = step.ask_about(site, site.warehouse.get_nights(name, day)[-1].batch_date, asked)
        if as_json:
            print_json({"detector": name, "questions": questions.to_dict("records")})
        else:
            print_csv(questions)
        return
    added = step.keep_verdicts(site, answers, reviewer, now)
    given = answers["verdict"].value_counts()
    counts = {word: int(given.get(word, 0)) for word in step.VERDICTS if word in given or word not in MEANING}
    if as_json:
        print_json({"detector": name, "new": added, "given": counts})
    else:
        given_counts = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if count)
        stdout.print(f"{added:,} new verdicts of {sum(counts.values()):,}: {given_counts or 'none given'}")
