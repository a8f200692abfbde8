"""Names and values that want to be SQL, paths, options or HTML stay what they are: text."""

import csv
import dataclasses
import secrets
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from fuzzing import HOSTILE

from flows.config.params import parse_section
from tasks.errors import Failure, ParamsInvalid
from tasks.ingest import ingest_arrivals
from tasks.publish import publish_night
from tasks.rows.contract import Contract
from tasks.rows.groups import name_values
from tasks.rows.params import EventTime, IngestParams, LabelColumn, ValidateParams
from tasks.sources.files import FilesSource
from tasks.sources.kinds import Window
from tasks.stores.lake import Part
from tasks.stores.site import Site
from tasks.stores.tables import Night
from tasks.stores.warehouse import Warehouse
from tasks.validate import validate_batches

DAY, NOW = date(2026, 3, 1), datetime(2026, 3, 2, 4, tzinfo=UTC)
ANY = ValidateParams(max_quarantined_fraction=1.0)
NAMES = [
    "'", '"', "';drop table labels;--", "../../etc/passwd", "-rf", "<script>alert(1)</script>", "${HOME}", "{{7*7}}",
    "%s%n", "a/b", "a\\b", "count(*)", "a.mean", "\U0001f600", "zeile",
]  # fmt: skip
VALUES = [text for text in HOSTILE if text.strip() and "\0" not in text and "\n" not in text]
BETWEEN = "expect_column_values_to_be_between"


@pytest.mark.slow
def test_columns_of_any_printable_name_go_all_the_way_to_the_page_of_the_batch(site: Site) -> None:
    path = Path(site.sources) / "--odd'name;.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "at", *NAMES])
        writer.writerows([[f"r{row}", "2026-03-01T12:00:00Z", *[str(row)] * len(NAMES)] for row in (0, 1, 2, 2)])
    source = FilesSource(kind="files", path="*.csv")
    ingest_arrivals(
        site,
        IngestParams(source=source, record_id="id", event_time=EventTime(column="at")),
        Window(DAY, DAY, datetime(2100, 1, 1, tzinfo=UTC)),
    )
    judged = [
        {"level": level, "type": BETWEEN, "kwargs": {"column": name + end, "min_value": 0, "max_value": 2}}
        for name in NAMES
        for level, end in (("row", ""), ("batch", ".mean"))
    ]
    document = {"columns": {name: {"type": "float"} for name in NAMES}, "expectations": judged}
    [found] = validate_batches(site, parse_section(Contract, document, path), [DAY], ANY)
    assert (found.rows_in, found.validated, found.excluded, found.failures) == (4, 3, 1, ())
    assert {o.observed for o in found.results if o.level == "batch"} == {"1"}
    pages = [page.read_text() for page in site.validations.iterdir()]
    assert pages
    assert any("&lt;script&gt;alert(1)" in page for page in pages)
    assert not any("<script>alert(1)" in page for page in pages)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0b", "\u202ea", "\ufeffa"])
def test_a_contract_refuses_column_names_that_cannot_be_printed(name: str) -> None:
    with pytest.raises(ParamsInvalid, match="printable characters"):
        parse_section(Contract, {"columns": {name: {"type": "text"}}}, Path("toy.yaml"))


def test_columns_that_are_the_same_to_duckdb_are_refused() -> None:
    with pytest.raises(ParamsInvalid, match="Amount and amount differ only in case"):
        columns = {name: {"type": "text"} for name in ("Amount", "b", "amount")}
        parse_section(Contract, {"columns": columns}, Path("toy.yaml"))


@pytest.mark.slow
def test_records_and_groups_of_any_name_are_published_and_found_again(engine: Warehouse) -> None:
    detector = VALUES[3]
    night = Night(
        detector=detector, batch_date=DAY, attempt=engine.begin_attempt(detector, DAY, "validate", NOW),
        input_hash="h", rows_in=len(VALUES), quarantined=0, excluded=0, scored=len(VALUES), flagged=len(VALUES),
        unseen=0, threshold=1.0, model_name=detector, model_version=1, scored_at=NOW, seconds=1.0, scores=None,
    )  # fmt: skip
    flags = pd.DataFrame({"record_id": VALUES}).assign(
        event_time=pd.Timestamp(NOW), score=2.0, percentile_rank=99.0, p_value=0.01, causes=VALUES,
        second_stage_probability=None, suppressed=False,
    )  # fmt: skip
    flags["second_stage_probability"] = flags["second_stage_probability"].astype(float)
    groups = pd.DataFrame({"grouping": "shop", "q": 0.99, "group": VALUES, "score": 1.0, "records": 1})
    publish_night(engine, night, flags, NOW, lambda: "h", groups)
    assert sorted(engine.read_flags(detector, DAY)["record_id"]) == sorted(VALUES)
    assert sorted(engine.read_groups(detector, DAY)["group"]) == sorted(VALUES)
    labels = pd.DataFrame({"record_id": VALUES, "label": 1, "known_at": pd.Timestamp(NOW)})
    assert engine.add_labels(detector, labels) == len(VALUES)
    assert sorted(engine.read_labels(detector, NOW, pd.Series(VALUES))["record_id"]) == sorted(VALUES)


LONG = secrets.token_hex(1 << 12)  # PostgreSQL compresses what repeats


@pytest.mark.parametrize(("bad", "reason"), [("a\0b", "record_id"), (f"ü{LONG[:1999]}", "longer than 2,000 bytes")])
def test_an_id_that_postgresql_cannot_keep_is_quarantined_and_learns_no_label(
    site: Site, engine: Warehouse, bad: str, reason: str
) -> None:
    rows = f"id,at,fraud\n{bad},2026-03-01T12:00Z,1\nc,2026-03-01T12:00Z,1\n"
    (Path(site.sources) / "rows.csv").write_text(rows, encoding="utf-8")
    params = IngestParams(
        source=FilesSource(kind="files", path="rows.csv"), record_id="id", event_time=EventTime(column="at"),
        labels=LabelColumn(column="fraud", anomalous=("1",)),
    )  # fmt: skip
    site = dataclasses.replace(site, warehouse=engine)
    done = ingest_arrivals(site, params, Window(DAY, DAY, datetime(2100, 1, 1, tzinfo=UTC)))
    assert (done.rows, done.labels) == (2, 1)
    contract = parse_section(Contract, {"columns": {"fraud": {"type": "int"}}}, Path("toy.yaml"))
    [found] = validate_batches(site, contract, [DAY], ANY)
    assert (found.validated, found.quarantined) == (1, 1)
    [why] = [row for part in site.lake.get("quarantine", "toy", DAY).parts for row in read_reasons(site, part)]
    assert reason in why


def read_reasons(site: Site, part: Part) -> list[str]:
    return [reason for table in site.lake.slices(part) for reason in table["quarantine_reason"].to_pylist()]


def test_texts_that_postgresql_cannot_keep_are_kept_alike_everywhere(engine: Warehouse) -> None:
    texts = pa.chunked_array([[LONG, f"{LONG[:-1]}.", "a\0b", "short"]])
    names, _ = name_values(texts)
    assert len({*names}) == 4
    assert names[2:] == ["a\ufffdb", "short"]
    ids = ["a", f"ü{LONG[:1998]}"]
    flags = pd.DataFrame({"record_id": ids}).assign(
        event_time=pd.Timestamp(NOW), score=2.0, percentile_rank=99.0, p_value=0.01, causes="nul \0 here",
        second_stage_probability=0.5, suppressed=False,
    )  # fmt: skip
    night = Night(
        detector="toy", batch_date=DAY, attempt=engine.begin_attempt("toy", DAY, "validate", NOW), input_hash="h",
        rows_in=2, quarantined=0, excluded=0, scored=2, flagged=2, unseen=0, threshold=1.0, model_name="m",
        model_version=1, scored_at=NOW, seconds=1.0, scores=None,
    )  # fmt: skip
    groups = pd.DataFrame({"grouping": "shop", "q": 0.99, "group": names, "score": 1.0, "records": 1})
    publish_night(engine, night, flags, NOW, lambda: "h", groups)
    assert sorted(engine.read_groups("toy", DAY)["group"]) == sorted(names)
    found = engine.read_flags("toy", DAY)
    assert (sorted(found["record_id"]), {*found["causes"]}) == (ids, {"nul \ufffd here"})
    attempt = engine.begin_attempt("toy", DAY, "validate", NOW)
    engine.fail_attempt("toy", DAY, attempt, Failure("SourceInvalid", {"what": "nul \0 here"}), NOW)
    assert engine.read_attempts("toy", DAY)[-1].failure == Failure("SourceInvalid", {"what": "nul \0 here"})
