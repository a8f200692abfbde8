from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, ForestReducerParams, QuantilePolicy, ReducerLimits
from tasks.errors import BatchMissing, LeakageFound, SourceInvalid, TooFewRows
from tasks.follow_up.cases import LABELS
from tasks.on_demand.cases import list_cases
from tasks.publish import publish_night
from tasks.review import (
    ANOMALY,
    NORMAL,
    QUESTIONS,
    ask_about,
    ask_about_all,
    judge_by_labels,
    keep_verdicts,
    read_answers,
)
from tasks.rows.columns import to_records
from tasks.rows.contract import Contract
from tasks.rows.params import EventTime, IngestParams, LabelColumn, ReviewParams, ScoreParams
from tasks.rows.record import RecordRule
from tasks.rows.shares import estimate_share
from tasks.score import COUNTS, check_out_of_sample, score_batch
from tasks.serving import ServedDetector
from tasks.sources.files import FilesSource
from tasks.stores.lake import Manifest
from tasks.stores.registry import Version
from tasks.stores.site import Site
from tasks.stores.tables import Night
from tasks.upkeep.preview import preview_reducer, read_stamp
from tasks.upkeep.reduce import read_verdicts, reduce_detector

DAYS = [date(2026, 3, day) for day in (1, 2, 3)]
NOW = datetime(2026, 3, 9, 8, tzinfo=UTC)
ROWS = 300
COLUMNS = (Column("amount", "numeric"), Column("age", "numeric"))
CONTRACT = Contract.model_validate({"columns": {"amount": {"type": "float"}, "age": {"type": "float"}}}, strict=False)
PARAMS = ReviewParams(
    sample=20,
    reducer=ForestReducerParams(trees=20),
    limits=ReducerLimits(min_verdicts=60, min_confirmed=20, max_recall_loss=0.2),
)
EVERYTHING = ScoreParams()
INGEST = IngestParams(
    source=FilesSource(kind="files", path="unread"),
    event_time=EventTime(column="event_time"),
    labels=LabelColumn(column="fraud", anomalous=("1",)),
)


def make_rows(day: date, wild: int = 60) -> pa.Table:
    """The first `wild` rows break the habit amount = age: upwards every other one (these are true), or downwards."""
    rng = np.random.default_rng(day.toordinal())
    age = rng.normal(size=ROWS)
    amount = age + 0.1 * rng.normal(size=ROWS)
    amount[:wild] += np.where(np.arange(wild) % 2 == 0, 5.0, -5.0)
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    times = pa.array([start + timedelta(minutes=i) for i in range(ROWS)], pa.timestamp("us", tz="UTC"))
    return pa.table(
        {"record_id": [f"{day:%d}-{i}" for i in range(ROWS)], "event_time": times, "amount": amount, "age": age}
    )


def is_true(record_id: str) -> bool:
    number = int(record_id.split("-")[1])
    return number < 60 and number % 2 == 0


@pytest.fixture(scope="module")
def detector() -> Detector:
    params = ModelParams(network=AutoencoderParams(layers=(6, 1, 6)), fit=FitParams(epochs=15, batch_size=64, seed=1))
    fit, stopping, clean = (to_records(make_rows(date(2026, 1, day), 0), COLUMNS)[0] for day in (1, 2, 3))
    fitted = fit_detector(COLUMNS, fit, stopping, params, torch.device("cpu"))
    calibrated = calibrate_detector(fitted, clean, QuantilePolicy(q=0.95))
    return calibrated.with_lineage({"trained_through": "2026-02-20"})


@pytest.fixture
def publish(site: Site, put_validated: Callable[..., Manifest]) -> Callable[..., pd.DataFrame]:
    """Score and publish nights; returns the flags of the last."""

    def publish_nights(detector: Detector, *days: date, params: ScoreParams = EVERYTHING) -> pd.DataFrame:
        engine = site.warehouse
        for day in days:
            validated = put_validated(day, make_rows(day))
            scores = score_batch(site, detector, CONTRACT, validated, params, token_hex(4))
            night = Night(
                detector="toy", batch_date=day, attempt=engine.begin_attempt("toy", day, "score", NOW),
                input_hash="i", rows_in=ROWS, quarantined=0, excluded=0, threshold=detector.threshold.value,
                model_name="nightjar-toy", model_version=1, scored_at=NOW, seconds=1.0, scores=scores.inputs,
                **{name: scores.facts[name] for name in COUNTS},
            )  # fmt: skip
            publish_night(engine, night, site.lake.read_frame(scores.facts["flags"]), NOW, lambda: "i")
        return engine.read_flags("toy", days[-1])

    return publish_nights


def judge(questions: pd.DataFrame) -> pd.DataFrame:
    return questions.assign(verdict=[ANOMALY if is_true(record) else NORMAL for record in questions["record_id"]])


@pytest.fixture
def reduced(site: Site, detector: Detector, publish: Callable[..., pd.DataFrame]) -> Detector:
    """A detector with a reducer learnt from the truth about the first two nights."""
    publish(detector, *DAYS[:2])
    keep_verdicts(site, judge(ask_about_all(site, DAYS[:2], 20)), "ada", NOW)
    return reduce_detector(detector, *read_verdicts(site, detector), 1, PARAMS)[0]


def test_all_flags_are_selected_for_review_and_a_known_share_of_the_rest(site, detector, publish) -> None:
    flags = publish(detector, DAYS[0])
    asked = ask_about(site, DAYS[0], 20)
    assert asked.columns.tolist() == QUESTIONS
    assert asked["record_id"].is_unique
    above = asked[asked["score"] > detector.threshold.value]
    assert above["record_id"].tolist() == flags["record_id"].tolist()
    assert (above["inclusion"] == 1.0).all()
    below = asked[asked["score"] <= detector.threshold.value]
    assert len(below) == 20
    assert below["inclusion"].to_numpy() == pytest.approx(20 / (ROWS - len(flags)))
    assert (asked["verdict"] == "").all()


@pytest.mark.slow
def test_the_same_rows_are_selected_again_however_the_night_is_sliced(site, detector, publish, monkeypatch) -> None:
    publish(detector, *DAYS[:2])
    asked = ask_about(site, DAYS[0], 20)
    monkeypatch.setattr("tasks.stores.lake.SLICE_ROWS", 17)
    pd.testing.assert_frame_equal(ask_about(site, DAYS[0], 20), asked)
    numbers = {day: set(ask_about(site, day, 20)["record_id"].str[3:]) for day in DAYS[:2]}
    assert numbers[DAYS[0]] != numbers[DAYS[1]]
    assert len(ask_about(site, DAYS[0], 0)) == len(asked) - 20
    assert len(ask_about(site, DAYS[0], 10_000)) == ROWS


def test_a_night_that_was_never_published_is_refused(site, detector, publish) -> None:
    with pytest.raises(BatchMissing, match="has no published night"):
        site.warehouse.get_nights(site.detector)
    publish(detector, DAYS[0])
    with pytest.raises(BatchMissing, match="no published night for 2026-03-02"):
        ask_about(site, DAYS[1], 5)


def test_a_file_of_questions_comes_back_with_its_verdicts(site, detector, publish, tmp_path: Path) -> None:
    publish(detector, DAYS[0])
    asked = judge(ask_about(site, DAYS[0], 5))
    asked.loc[3, "verdict"] = ""
    asked.loc[4, "verdict"] = " Anomaly "
    asked.to_csv(tmp_path / "asked.csv", index=False)
    answers = read_answers(tmp_path / "asked.csv")
    assert len(answers) == len(asked) - 1
    assert keep_verdicts(site, answers, "ada", NOW) == len(answers)
    assert keep_verdicts(site, answers, "ada", NOW + timedelta(hours=1)) == 0
    assert keep_verdicts(site, answers, "kim", NOW + timedelta(hours=1)) == len(answers)
    reviews = site.warehouse.read_reviews("toy").set_index("record_id")
    assert asked["record_id"][3] not in reviews.index
    assert reviews["verdict"][asked["record_id"][4]] == ANOMALY
    assert reviews["inclusion"].to_dict() == pytest.approx(answers.set_index("record_id")["inclusion"].to_dict())


def test_a_note_is_kept_and_a_wrong_verdict_can_be_withdrawn(site, detector, publish, tmp_path: Path) -> None:
    publish(detector, DAYS[0])
    asked = judge(ask_about(site, DAYS[0], 0))

    def take(hour: int, **values: str) -> int:
        changed = asked.assign(**values) if values else asked
        changed.head(2).to_csv(tmp_path / "asked.csv", index=False)
        return keep_verdicts(site, read_answers(tmp_path / "asked.csv"), "ada", NOW + timedelta(hours=hour))

    def read() -> list[tuple[str, str]]:
        found = site.warehouse.read_reviews("toy")
        return list(zip(found["verdict"], found["note"].fillna(""), strict=True))

    assert take(0, verdict="anomaly", note=" card was stolen ") == 2
    assert read() == [("anomaly", "card was stolen")] * 2
    assert take(1, verdict="anomaly") == 0  # the file was written again, without notes
    assert take(2, verdict="anomaly", note="called the owner") == 2
    assert read() == [("anomaly", "called the owner")] * 2
    assert take(3, verdict="Withdrawn") == 2
    assert read() == []
    assert site.warehouse.read_reviews("toy", NOW + timedelta(hours=2))["verdict"].tolist() == ["anomaly"] * 2
    assert take(4, verdict="withdrawn") == 0
    assert take(5, verdict="normal") == 2
    assert read() == [("normal", "")] * 2


def test_all_words_of_a_verdict_are_taken_and_what_is_learnt_from_them(site, detector, publish, tmp_path: Path) -> None:
    publish(detector, DAYS[0])
    words = ["anomaly", "normal", "confirmed", "expected", "False_Alarm", "new_trend", "unresolved"]
    asked = ask_about(site, DAYS[0], 0).head(len(words)).assign(verdict=words)
    asked.to_csv(tmp_path / "asked.csv", index=False)

    def take(hour: int) -> int:
        return keep_verdicts(site, read_answers(tmp_path / "asked.csv"), "ada", NOW + timedelta(hours=hour))

    assert [take(0), take(1)] == [len(words), 0]
    reviews = site.warehouse.read_reviews("toy", learnt=False).set_index("record_id").loc[asked["record_id"]]
    learnt = ["anomaly", "normal", "anomaly", "normal", "normal", "normal"]
    assert reviews["verdict"].tolist() == [*learnt, "unresolved"]
    assert reviews["said"].fillna("").tolist() == ["", "", *map(str.lower, words[2:])]
    assert set(reviews["attempt"]) == {1}
    assert sorted(site.warehouse.read_reviews("toy")["verdict"]) == sorted(learnt)
    asked.assign(verdict=[*learnt, "withdrawn"]).to_csv(tmp_path / "asked.csv", index=False)
    assert [take(2), take(3)] == [1, 0]  # the plain words say nothing new


def test_known_labels_close_cases_by_rule_and_do_not_count_as_a_persons_work(site, detector, publish) -> None:
    publish(detector, DAYS[0])
    asked = judge(ask_about(site, DAYS[0], 0))
    keep_verdicts(site, asked.iloc[1:], LABELS, NOW)
    [case] = list_cases(site, RecordRule(), NOW, "open")
    closed = list_cases(site, RecordRule(), NOW, "closed")
    assert {one["verdict"] for one in closed} == {"confirmed", "false_alarm"}
    assert case["record_id"] == asked["record_id"][0]
    keep_verdicts(site, asked.iloc[:1].assign(verdict="withdrawn"), LABELS, NOW + timedelta(hours=1))
    publish(detector.with_lineage({}), DAYS[0])
    assert [one["case"] for one in list_cases(site, RecordRule(), NOW, "open")] == [case["case"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("record_id,verdict\na,normal\n", "no column batch_date, inclusion"),
        ("batch_date,record_id,inclusion,verdict\n2026-03-01,a,1,perhaps\n", "verdicts perhaps"),
        ("batch_date,record_id,inclusion,verdict\n2026-03-01,a,0,normal\n", "inclusion outside"),
        ("batch_date,record_id,inclusion,verdict\n1st of March,a,1,normal\n", "1st of March"),
        ("batch_date,record_id,inclusion,verdict\n2026-03-01,a,1,normal\n2026-03-01,a,1,anomaly\n", "two verdicts"),
        ("batch_date,record_id,inclusion,Verdict,verdict\n2026-03-01,a,1,normal,\n", "two columns verdict"),
        ("", "No columns"),
    ],
)
def test_a_file_that_cannot_be_taken_says_why(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "asked.csv").write_text(content)
    with pytest.raises(SourceInvalid, match=message):
        read_answers(tmp_path / "asked.csv")


@pytest.mark.parametrize(
    "change",
    [{"record_id": "nobody"}, {"record_id": ""}, {"batch_date": date(2099, 1, 1)}, {"batch_date": date(2020, 1, 1)}],
)
def test_a_verdict_on_a_record_that_no_night_holds_is_refused(site, detector, publish, change) -> None:
    publish(detector, DAYS[0])
    answers = judge(ask_about(site, DAYS[0], 5))
    strange = answers.copy()
    for column, value in change.items():
        strange.loc[1, column] = value
    with pytest.raises(SourceInvalid, match=f"{strange.loc[1, 'batch_date']} {strange.loc[1, 'record_id']}"):
        keep_verdicts(site, strange, "ada", NOW)
    assert site.warehouse.read_reviews("toy").empty
    assert keep_verdicts(site, answers, "ada", NOW) == len(answers)


def test_labels_give_verdicts_and_no_label_means_normal_only_once_the_night_has_matured(
    make_site, publish, detector
) -> None:
    site = make_site(label_delay_days=5)
    publish(detector, DAYS[0])
    asked = ask_about(site, DAYS[0], 20)
    true = [record for record in asked["record_id"] if is_true(record)]
    labels = pd.DataFrame({"record_id": true, "label": 1, "known_at": pd.Timestamp("2026-03-03", tz="UTC")})
    site.warehouse.add_labels("toy", labels)
    early, young, mature = (
        judge_by_labels(asked, site, INGEST, datetime(2026, 3, d, 9, tzinfo=UTC)) for d in (2, 4, 7)
    )
    assert (early["verdict"] == "").all()
    assert set(young["verdict"]) == {ANOMALY, ""}
    pd.testing.assert_frame_equal(mature, judge(asked))
    with pytest.raises(SourceInvalid, match="has no labels"):
        judge_by_labels(asked, site, INGEST.model_copy(update={"labels": None}), NOW)


def test_verdicts_are_read_back_with_the_rows_they_are_about(site, detector, publish) -> None:
    publish(detector, *DAYS[:2])
    asked = ask_about_all(site, DAYS[:2], 20)
    keep_verdicts(site, judge(asked), "ada", NOW)
    verdicts, nights = read_verdicts(site, detector)
    assert nights == DAYS[:2]
    assert len(verdicts) == len(asked)
    assert verdicts.is_flag.sum() == (asked["inclusion"] == 1).sum()
    rows = pa.concat_tables([make_rows(day) for day in DAYS[:2]])
    is_asked = np.isin(rows["record_id"].to_pylist(), asked["record_id"])
    ids = [record for record, one in zip(rows["record_id"].to_pylist(), is_asked, strict=True) if one]
    assert verdicts.is_anomaly.tolist() == [is_true(record) for record in ids]
    expected = detector.describe(to_records(rows.filter(pa.array(is_asked)), COLUMNS)[0])
    assert torch.equal(verdicts.features, expected)


def test_without_a_verdict_there_is_nothing_to_learn_from(site, detector) -> None:
    with pytest.raises(TooFewRows, match="has no verdicts that it can learn from"):
        read_verdicts(site, detector)


def test_nights_whose_rows_were_pruned_are_not_learnt_from(site, detector, publish) -> None:
    publish(detector, *DAYS[:2])
    asked = judge(ask_about_all(site, DAYS[:2], 20))
    keep_verdicts(site, asked, "ada", NOW)
    Path(site.lake.full(site.lake.manifest_path("validated", "toy", DAYS[0]))).unlink()
    verdicts, nights = read_verdicts(site, detector)
    assert nights == [DAYS[1]]
    assert len(verdicts) == (asked["batch_date"] == DAYS[1]).sum()
    Path(site.lake.full(site.lake.manifest_path("validated", "toy", DAYS[1]))).unlink()
    with pytest.raises(TooFewRows, match="on nights whose rows were pruned"):
        read_verdicts(site, detector)


@pytest.mark.parametrize("change", ["absent", "text"])
def test_nights_whose_rows_do_not_fit_the_version_are_not_learnt_from(
    site, detector, publish, put_validated, change: str
) -> None:
    publish(detector, *DAYS[:2])
    asked = judge(ask_about_all(site, DAYS[:2], 20))
    keep_verdicts(site, asked, "ada", NOW)
    rows = make_rows(DAYS[0])
    name = next(column.name for column in COLUMNS if column.kind == "numeric")
    place = rows.column_names.index(name)
    other = rows.remove_column(place) if change == "absent" else rows.set_column(place, name, rows[name].cast("string"))
    put_validated(DAYS[0], other)
    verdicts, nights = read_verdicts(site, detector)
    assert nights == [DAYS[1]]
    assert len(verdicts) == (asked["batch_date"] == DAYS[1]).sum()


def test_a_later_night_keeps_its_suppressed_flags_with_their_probability(site, detector, reduced, publish) -> None:
    plain = publish(detector, DAYS[2])
    flags = publish(reduced, DAYS[2])
    assert flags["record_id"].tolist() == plain["record_id"].tolist()
    assert flags["score"].tolist() == plain["score"].tolist()
    assert flags["second_stage_probability"].between(0, 1).all()
    cut = reduced.reducer.header.cut
    assert flags["suppressed"].tolist() == (flags["second_stage_probability"] < cut).tolist()
    is_anomaly = flags["record_id"].map(is_true)
    assert flags.loc[~is_anomaly, "suppressed"].mean() > 0.8
    assert flags.loc[is_anomaly, "suppressed"].mean() < 0.25
    [batch] = site.warehouse.get_nights(site.detector, DAYS[2])
    assert batch.flagged == batch.published == len(flags)


def test_the_cap_counts_alerts_and_bounds_the_suppressed_apart(reduced, publish) -> None:
    everything = publish(reduced, DAYS[2])
    capped = publish(reduced, DAYS[2], params=ScoreParams(max_alerts=7))
    for suppressed in (True, False):
        expected = everything[everything["suppressed"] == suppressed].head(7)
        found = capped[capped["suppressed"] == suppressed]
        assert found["record_id"].tolist() == expected["record_id"].tolist()


def test_suppressed_flags_are_sampled_for_review(site, reduced, publish) -> None:
    flags = publish(reduced, DAYS[2])
    suppressed = flags.loc[flags["suppressed"], "record_id"]
    asked = ask_about(site, DAYS[2], 5)
    assert set(flags.loc[~flags["suppressed"], "record_id"]) <= set(asked["record_id"])
    sampled = asked[asked["record_id"].isin(suppressed)]
    assert len(sampled) == 5
    assert sampled["inclusion"].to_numpy() == pytest.approx(5 / len(suppressed))


def test_a_reviewed_night_is_learnt_from_and_not_scored_again(site, reduced) -> None:
    assert reduced.lineage["trained_through"] == DAYS[1].isoformat()
    assert reduced.lineage["reducer"] == {"from_version": 1, "reviewed_through": DAYS[1].isoformat()}
    check_out_of_sample(site, reduced, DAYS[2])
    with pytest.raises(LeakageFound):
        check_out_of_sample(site, reduced, DAYS[1])


def test_a_served_stack_answers_with_its_second_stage(detector, reduced, publish) -> None:
    flags = publish(reduced, DAYS[2]).set_index("record_id")
    rows = make_rows(DAYS[2]).to_pandas()
    answer = ServedDetector(reduced).predict(rows).set_index(rows["record_id"])
    flagged = answer[answer["is_flagged"]].loc[flags.index]
    assert flagged["second_stage_probability"].tolist() == flags["second_stage_probability"].tolist()
    assert flagged["is_suppressed"].tolist() == flags["suppressed"].tolist()
    others = answer[~answer["is_flagged"]]
    assert others["second_stage_probability"].isna().all()
    assert not others["is_suppressed"].any()
    assert "is_suppressed" not in ServedDetector(replace(reduced, reducer=None)).predict(rows)


def with_champion(site: Site, detector: Detector, folder: Path) -> Site:
    """The site with a registry that has one version, the champion."""
    champion = Version("nightjar-toy", 1, ("champion",), {"bundle_hash": detector.save(folder)})
    registry: Any = SimpleNamespace(
        get_champion=lambda: champion, fetch_bundle=lambda _: folder, check_tags=lambda _: champion.tags["bundle_hash"]
    )
    return replace(site, registry=registry)


def test_a_preview_judges_flags_with_a_verdict_as_the_gain_does_and_others_as_the_new_stage(
    site, detector, publish, tmp_path
) -> None:
    flags = {day: publish(detector, day) for day in DAYS}
    keep_verdicts(site, judge(ask_about_all(site, DAYS[:2], 20)), "ada", NOW)
    site = with_champion(site, detector, tmp_path / "champion")
    verdicts, nights = read_verdicts(site, detector)
    reduced, gain = reduce_detector(detector, verdicts, nights, 1, PARAMS)
    kept, _ = reduced.reduce(to_records(make_rows(DAYS[2]), COLUMNS)[0])
    last = dict(zip(make_rows(DAYS[2])["record_id"].to_pylist(), kept, strict=True))
    expected = sum(last[record] >= reduced.reducer.header.cut for record in flags[DAYS[2]]["record_id"])
    reviewed = len(flags[DAYS[0]]) + len(flags[DAYS[1]])
    found = preview_reducer(site, PARAMS)
    assert (found.version, found.nights, found.first, found.last) == (1, 3, DAYS[0], DAYS[2])
    assert (found.flags, found.left_out) == (reviewed + len(flags[DAYS[2]]), 0)
    assert found.then.alerts == round(gain.alerts_share * reviewed) + expected
    assert found.then.suppressed == found.flags - found.then.alerts == found.going
    assert found.then.lost == estimate_share(round((1 - gain.recall_kept) * gain.confirmed), gain.confirmed)
    assert (found.now, found.returning, found.refusal, found.gain) == (None, 0, "", gain)
    totals = [sum(getattr(one, name) for one in found.causes) for name in ("flags", "suppressed_then", "lost_then")]
    assert totals == [found.flags, found.then.suppressed, found.then.lost.hits]
    assert {one.cause for one in found.causes} <= {"amount", "age"}
    assert preview_reducer(site, PARAMS, nights=1).flags == len(flags[DAYS[2]])


def test_a_preview_shows_the_stage_in_use_and_how_much_it_has_learnt_from(
    site, detector, reduced, publish, tmp_path
) -> None:
    flags = publish(reduced, DAYS[2])
    site = with_champion(site, reduced, tmp_path / "champion")
    newest = preview_reducer(site, PARAMS, nights=1)
    assert newest.now.suppressed == flags["suppressed"].sum()
    assert (newest.now.learnt, newest.now.lost.total) == (0, 0)
    before = read_stamp(site, PARAMS)
    assert read_stamp(site, PARAMS) == before
    keep_verdicts(site, judge(ask_about(site, DAYS[2], ROWS)), "ada", NOW)
    assert read_stamp(site, PARAMS) != before
    found = preview_reducer(site, PARAMS)
    confirmed = sum(is_true(record) for day in DAYS for record in site.warehouse.read_flags("toy", day)["record_id"])
    assert found.now.lost.total == found.then.lost.total == confirmed
    assert found.now.learnt == sum(
        is_true(record) for day in DAYS[:2] for record in site.warehouse.read_flags("toy", day)["record_id"]
    )
    assert found.going - found.returning == found.then.suppressed - found.now.suppressed


def test_a_preview_leaves_out_pruned_flags_says_what_would_be_refused_and_needs_verdicts(
    site, detector, publish, tmp_path
) -> None:
    site = with_champion(site, detector, tmp_path / "champion")
    with pytest.raises(TooFewRows, match="has no verdicts that it can learn from"):
        preview_reducer(site, PARAMS)
    flags = publish(detector, *DAYS)
    with pytest.raises(TooFewRows, match="has no verdicts that it can learn from"):
        preview_reducer(site, PARAMS)
    keep_verdicts(site, judge(ask_about_all(site, DAYS[:2], 20)), "ada", NOW)
    Path(site.lake.full(site.lake.manifest_path("validated", "toy", DAYS[2]))).unlink()
    strict = PARAMS.model_copy(update={"limits": PARAMS.limits.model_copy(update={"max_recall_loss": 0.05})})
    found = preview_reducer(site, strict)
    assert found.left_out == len(flags)
    assert (found.refusal == "") == (found.gain.recall_kept >= 0.95)
    with pytest.raises(TooFewRows, match="are missing"):
        preview_reducer(
            site, PARAMS.model_copy(update={"limits": PARAMS.limits.model_copy(update={"min_verdicts": 9999})})
        )
