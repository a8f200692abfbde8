"""The six paths that judge rows agree on one record in every field, whatever the second stage makes of it.

So they do where scales and thresholds are those of the record's customer and shop.
"""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from steps import TONIGHT, NightSteps, TrainingSteps, load, migrate
from tiny import COLUMNS, add_reducer, make_tiny_detector
from toy import CUTOFF, PARAMS, make_project, make_rows

from flows.config.setup import Setup
from models.detector import Detector
from models.records import Records
from models.segments import Segments
from tasks.evaluate import evaluate_nights
from tasks.on_demand.explain import explain_record
from tasks.on_demand.loose import score_file
from tasks.on_demand.rank import rank_by_champion
from tasks.register import register_bundle
from tasks.review import sample_below
from tasks.rows.columns import to_records
from tasks.rows.histogram import count_scores
from tasks.rows.judge import Judgement, find_thresholds, judge, load_detector
from tasks.rows.measures import measure
from tasks.rows.params import RetentionParams
from tasks.serving import ServedDetector
from tasks.stores import registry
from tasks.upkeep.verify import CheckedNight, judge_again, read_landed, verify_nights

FIELDS = ("score", "percentile_rank", "p_value", "is_flagged", "second_stage_probability", "is_suppressed")
FRAUD, ORDINARY = f"{TONIGHT:%m%d}-0299", f"{TONIGHT:%m%d}-0000"
NOW = datetime(2026, 4, 4, tzinfo=UTC)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "by customer and shop"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    project = make_project(tmp_path_factory.mktemp("judge") / "project")
    if request.param:
        project.change("contracts/orders.yaml", "columns", "customer", value={"type": "text"})
        project.change("params.yaml", "detectors", "orders", "entity", value="customer")
        train = PARAMS["train"] | {"per_entity": {"scale": ["spend"], "minimum": 3}}
        project.change("params.yaml", "detectors", "orders", "train", value=train)
        project.change("params.yaml", "detectors", "orders", "calibrate", value={"by": "shop"})
    setup = load(project.folder)
    migrate(setup)
    TrainingSteps(setup).run_all()
    project.write_day(TONIGHT)
    return setup


@pytest.fixture(scope="module", params=[None, 1.1, 0.0], ids=["no reducer", "all suppressed", "none suppressed"])
def night(request: pytest.FixtureRequest, trained: Setup) -> tuple[Setup, Detector]:
    """Tonight, published by a champion without a reducer, or with one of a cut above or below every probability."""
    site = trained.site
    detector = Detector.load(site.registry.fetch_bundle(site.registry.get_version(1)))
    if request.param is not None:
        detector = add_reducer(detector, request.param)
    detector.save(site.home / "changed")
    site.registry.set_alias(registry.CHAMPION, register_bundle(site, site.home / "changed", None).version)
    steps = NightSteps(trained)
    for name in ("begin", "ingest", "resolve", "validate", "score", "publish"):
        steps.run(name, site)
    return trained, detector


def ask_the_night(setup: Setup, record: str) -> dict[str, Any]:
    """The row of flagged_anomalies, or what the scores zone has of a record that is not there."""
    warehouse = setup.site.warehouse
    [batch], flags = warehouse.get_nights("orders", TONIGHT), warehouse.read_flags("orders", TONIGHT)
    if record in flags["record_id"].tolist():
        found = flags.set_index("record_id").loc[record].to_dict()
        return found | {
            "is_flagged": True,
            "is_suppressed": bool(found["suppressed"]),
            "second_stage_probability": none_if_missing(found["second_stage_probability"]),
            "causes": json.loads(found["causes"]),
        }
    parts = setup.site.lake.get("scores", "orders", TONIGHT, batch.scores).parts
    rows = setup.site.lake.query("select * from parts", parts).to_pandas().set_index("record_id")
    unflagged = {"is_flagged": False, "is_suppressed": False, "second_stage_probability": None}
    return rows.loc[record].to_dict() | unflagged


def ask_for_a_loose_file(setup: Setup, record: str) -> dict[str, Any]:
    configured = setup.configured
    file = score_file(setup.site, configured.contract, configured.detector, f"orders/orders-{TONIGHT}.csv", None, None)
    flagged = [row for row in file["records"] if row["is_flagged"]]
    assert (file["flagged"], file["suppressed"]) == (len(flagged), sum(row["is_suppressed"] for row in flagged))
    [found] = [row for row in json.loads(json.dumps(file, allow_nan=False))["records"] if row["record_id"] == record]
    return found


def ask_to_rank(setup: Setup, record: str) -> dict[str, Any]:
    values = {name: str(read_row(record)[name]) for name in ("items", "spend", "shop", "customer")}
    params = setup.configured.detector.score
    return asdict(rank_by_champion(setup.site, setup.configured.contract, values, params))


def ask_to_explain(setup: Setup, record: str) -> dict[str, Any]:
    return asdict(explain_record(setup.site, setup.configured.contract, setup.record_rule, record))


def ask_over_http(detector: Detector, record: str) -> dict[str, Any]:
    values = {name: read_row(record)[name] for name in ("items", "spend", "shop", "customer")}
    body = json.dumps({"dataframe_records": [values]}, default=float).encode()
    answer = ServedDetector(detector).respond(body, "application/json")
    assert answer.status == 200
    [found] = json.loads(answer.response)["predictions"]
    assert found.keys() == set(FIELDS if detector.reducer else FIELDS[:4])
    return {"second_stage_probability": None, "is_suppressed": False} | found


def ask_to_verify(setup: Setup, detector: Detector, record: str) -> dict[str, Any]:
    site, contract = setup.site, setup.configured.contract
    checks = verify_nights(site, contract, RetentionParams(), TONIGHT, 1000, 7, NOW)
    assert {check.result for check in checks} == {"ok"}
    published = CheckedNight(site, contract, site.warehouse.get_nights("orders", TONIGHT)[0], 1000, 7)
    rows = read_landed(published, site.lake.get("landing", "orders", TONIGHT), pd.Series([record]))
    found = judge_again(detector, rows, find_thresholds(detector, rows)).loc[record].to_dict()
    return found | {"second_stage_probability": none_if_missing(found["second_stage_probability"])}


def read_row(record: str) -> pd.Series:
    return make_rows(TONIGHT).set_index("order_id").loc[record]


def none_if_missing(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


@pytest.mark.parametrize("record", [FRAUD, ORDINARY])
def test_six_paths_say_the_same_of_one_record(night: tuple[Setup, Detector], record: str) -> None:
    setup, detector = night
    answers = {
        "night": ask_the_night(setup, record),
        "loose file": ask_for_a_loose_file(setup, record),
        "rank": ask_to_rank(setup, record),
        "explain": ask_to_explain(setup, record),
        "HTTP": ask_over_http(detector, record),
        "verify": ask_to_verify(setup, detector, record),
    }
    ranked = answers["rank"]
    assert ranked["is_flagged"] == (record == FRAUD)
    has_probability = record == FRAUD and detector.reducer is not None
    assert (ranked["second_stage_probability"] is not None) == has_probability
    assert ranked["is_suppressed"] == (has_probability and detector.reducer.header.cut > 1)
    if record == ORDINARY:  # the night keeps its rank as float32, and no p-value
        answer = answers["night"]
        assert answer["percentile_rank"] == np.float32(ranked["percentile_rank"])
        answers["night"] = answer | {name: ranked[name] for name in ("percentile_rank", "p_value")}
    for who, answer in answers.items():
        assert {name: answer[name] for name in FIELDS} == {name: ranked[name] for name in FIELDS}, who
    assert answers["explain"]["causes"] == [cause for cause in ranked["causes"] if cause["share"]]
    thresholds = {answers[who]["threshold"] for who in ("rank", "explain", "night") if "threshold" in answers[who]}
    segments = detector.segments
    own = segments.thresholds[read_row(record)["shop"]] if segments else detector.threshold
    assert thresholds == {own.value} and (own == detector.threshold) == (segments is None)
    if record == FRAUD:
        assert answers["night"]["causes"] == answers["loose file"]["causes"] == ranked["causes"]


def test_what_follows_a_night_goes_by_the_thresholds_that_applied(night: tuple[Setup, Detector]) -> None:
    setup, detector = night
    site, lake = setup.site, setup.site.lake
    [batch], flags = site.warehouse.get_nights("orders", TONIGHT), site.warehouse.read_flags("orders", TONIGHT)
    validated, scores = lake.get("validated", "orders", TONIGHT), lake.get("scores", "orders", TONIGHT, batch.scores)
    rows = pa.concat_tables(table for part in validated.parts for table in lake.slices(part))
    limits = pd.Series(find_thresholds(detector, rows), rows["record_id"].to_pylist())
    found = lake.query("select record_id, score from parts", scores.parts).to_pandas().set_index("record_id")["score"]
    is_flag = found > limits[found.index]
    assert batch.threshold == detector.threshold.value and batch.flagged == is_flag.sum() > 0
    assert (limits.nunique() > 1) == (detector.segments is not None)
    assert flags["threshold"].tolist() == limits[flags["record_id"]].tolist()
    below, number = sample_below(lake, scores, batch.threshold, 1000)
    assert set(below["record_id"]) == set(found.index[~is_flag]) and number == len(below)
    histogram = count_scores(lake, scores, batch.threshold)
    assert sum(histogram.counts[histogram.usual :]) == batch.flagged
    evaluation = evaluate_nights(site, setup.ingest_params, [TONIGHT], NOW)
    truth = site.warehouse.read_labels("orders", NOW, found.index).set_index("record_id")["label"]
    is_fraud = np.asarray(found.index.map(truth) == 1)
    assert evaluation.metrics == measure((found - limits[found.index]).to_numpy(), is_fraud, 0.0)


def test_no_negative_value_is_expected_of_a_column_that_has_none_in_the_fit_rows(trained: Setup) -> None:
    site = trained.site
    bundle = site.registry.fetch_bundle(site.registry.get_version(1))
    detector, plain = load_detector(site.lake, "orders", bundle), Detector.load(bundle)
    assert detector.nonnegative == {"items", "spend"}
    assert load_detector(site.lake, "others", bundle).nonnegative == frozenset()  # whose rows the lake has not
    clean = site.lake.get("clean", "orders", CUTOFF)
    [fit] = [part for part in clean.parts if part.source == "fit"]
    assert site.lake.lowest(fit)["spend"] == min(table["spend"].to_numpy().min() for table in site.lake.slices(fit))
    low = pa.table({"items": [-40, 3], "spend": [-900.0, 30.0], "shop": ["north", "south"], "customer": ["?", None]})
    records, _ = to_records(low, detector.columns)
    shown, before = detector.explain(records), plain.explain(records)
    assert before.expected[0, :2].min() < 0
    assert np.array_equal(shown.expected[:, :2], before.expected[:, :2].clip(min=0))
    assert np.array_equal(shown.contributions, before.contributions)
    assert np.array_equal(shown.actual, before.actual)
    assert np.array_equal(detector.score(records), plain.score(records))


# --- the judge itself ---


def make_table(n: int, wild: int) -> pa.Table:
    """n rows of the tiny detector's columns, the first `wild` of them far out."""
    rng = np.random.default_rng(3)
    amount = rng.normal(size=n) + 50 * (np.arange(n) < wild)
    times = pa.array(1_772_323_200_000_000 + rng.integers(0, 86_400_000_000, n), pa.timestamp("us", tz="UTC"))
    return pa.table({"amount": amount, "country": rng.choice(["DE", "FR", "XX"], n).tolist(), "at": times})


def test_the_second_stage_runs_once_and_on_flags_only(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, table, asked = add_reducer(make_tiny_detector(), 0.0), make_table(60, 5), []
    reduce = Detector.reduce
    monkeypatch.setattr(Detector, "reduce", lambda self, rows: asked.append(len(rows)) or reduce(self, rows))
    judged = judge(detector, table)
    flagged = judged.is_flagged
    assert asked == [flagged.sum()]
    assert 5 <= flagged.sum() < 60
    assert np.array_equal(np.isnan(judged.second_stage_probability), ~flagged)
    alone = detector.reduce(to_records(table, COLUMNS)[0])[0]
    assert np.array_equal(judged.second_stage_probability[flagged], alone[flagged])


@pytest.mark.parametrize(("cut", "suppressed"), [(1.1, True), (0.0, False)])
def test_only_flags_can_be_suppressed(cut: float, suppressed: bool) -> None:
    judged = judge(add_reducer(make_tiny_detector(), cut), make_table(60, 5))
    assert np.array_equal(judged.is_suppressed, judged.is_flagged & suppressed)


def test_causes_are_computed_for_chosen_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    judged, explained = judge(make_tiny_detector(), make_table(60, 5)), []
    explain = Detector.explain

    def count(detector: Detector, records: Records) -> Any:
        explained.append(len(records))
        return explain(detector, records)

    monkeypatch.setattr(Detector, "explain", count)
    assert judged[np.zeros(60, dtype=bool)].name_causes(set(), 2) == []
    assert explained == []
    chosen = judged[judged.is_flagged]
    causes = [json.loads(text) for text in chosen.name_causes({"country"}, 2)]
    assert explained == [judged.is_flagged.sum()]
    for score, shares in zip(chosen.score, causes, strict=True):
        assert sum(cause["share"] for cause in shares) == pytest.approx(score, rel=1e-12)


def test_taking_rows_keeps_their_judgement() -> None:
    judged = judge(add_reducer(make_tiny_detector(), 1.1), make_table(60, 5))
    some = np.arange(60) % 3 == 0
    taken, again = judged[some], judge(judged.detector, judged.rows.filter(pa.array(some)))
    for name, array in taken.arrays().items():
        assert np.array_equal(array, judged.arrays()[name][some], equal_nan=True), name
        assert np.array_equal(array, again.arrays()[name], equal_nan=True), name
    assert np.array_equal(taken.is_unseen, judged.is_unseen[some])


def test_a_recorded_threshold_decides_what_is_a_flag() -> None:
    detector, table = add_reducer(make_tiny_detector(), 0.0), make_table(20, 1)
    usual = judge(detector, table)
    everything = judge(detector, table, -1.0)
    assert everything.is_flagged.all() and not np.isnan(everything.second_stage_probability).any()
    edge = float(np.sort(usual.score)[-1])
    assert not judge(detector, table, edge).is_flagged.any()


def test_no_rows_are_judged_to_nothing() -> None:
    judged: Judgement = judge(add_reducer(make_tiny_detector(), 0.0), make_table(0, 0))
    assert {len(array) for array in judged.arrays().values()} == {0}


def test_a_row_has_the_threshold_of_its_segment_and_without_one_the_pooled_one() -> None:
    detector, table = make_tiny_detector(), make_table(60, 5)
    thresholds = {"DE": replace(detector.threshold, value=-1.0), "FR": replace(detector.threshold, value=1e9)}
    calibration = replace(detector.calibration, segments=Segments("country", thresholds))
    judged = judge(replace(detector, calibration=calibration), table)
    country = np.array(table["country"].to_pylist())
    pooled = judge(detector, table)
    assert np.array_equal(
        judged.threshold, np.select([country == "DE", country == "FR"], [-1.0, 1e9], pooled.threshold)
    )
    assert judged.is_flagged[country == "DE"].all() and not judged.is_flagged[country == "FR"].any()
    assert np.array_equal(judged.is_flagged[country == "XX"], pooled.is_flagged[country == "XX"])
    assert np.array_equal(judged.percentile_rank, pooled.percentile_rank)
    missing = table.set_column(1, "country", pa.nulls(60, pa.string()))
    assert set(judge(judged.detector, missing).threshold) == {detector.threshold.value}
