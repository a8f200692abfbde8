import json
import secrets
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.columns import Column, Tokens
from models.detector import Detector, Explanation, ModelParams, calibrate_detector, fit_detector
from models.encoders import UNSEEN, Unit
from models.params import AutoencoderParams, FitParams, FixedPolicy, QuantilePolicy
from tasks.errors import LeakageFound, PublishConflict
from tasks.rows.causes import MASKED, name_causes
from tasks.rows.columns import to_records
from tasks.rows.contract import Contract
from tasks.rows.params import GroupsParams, ScoreParams
from tasks.rows.validation import Validation
from tasks.rows.worst import WorstRows
from tasks.score import COUNTS, Scoring, check_out_of_sample, hash_inputs, refuse_other_input, score_batch
from tasks.stores.files import read_ahead

DAY = date(2026, 3, 1)
COLUMNS = (
    Column("amount", "numeric"),
    Column("spend", "log_numeric"),
    Column("country", "categorical", ("DE", "FR")),
    Column("event_time", "datetime"),
)
CONTRACT = Contract.model_validate(
    {
        "columns": {
            "amount": {"type": "float"},
            "spend": {"type": "float", "masked": True},
            "country": {"type": "text", "masked": True},
            "card": {"type": "text", "masked": True},
        }
    },
    strict=False,
)
EVERYTHING = ScoreParams(max_alerts=10_000, causes=2)


def make_rows(n: int, seed: int = 0, wild: int = 0) -> pa.Table:
    """n rows, the first `wild` of them far out."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=n)
    amount[:wild] += 20 + np.arange(wild)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    return pa.table(
        {
            "record_id": [f"r{seed}-{i}" for i in range(n)],
            "event_time": pa.array([start + timedelta(seconds=37 * i) for i in range(n)], pa.timestamp("us", tz="UTC")),
            "amount": amount,
            "spend": np.exp(rng.normal(size=n)),
            "country": rng.choice(["DE", "FR", "SECRETLAND"], n, p=[0.5, 0.4, 0.1]).tolist(),
            "card": [f"SECRET-{i}" for i in range(n)],
        }
    )


@pytest.fixture(scope="module")
def detector() -> Detector:
    params = ModelParams(
        networks=(AutoencoderParams(layers=(6, 2, 6)),), fit=FitParams(epochs=2, batch_size=64, seed=1), threads=1
    )
    fit, stopping, clean = (to_records(make_rows(200, seed), COLUMNS)[0] for seed in (1, 2, 3))
    fitted = fit_detector(COLUMNS, fit, stopping, params, torch.device("cpu"))
    return calibrate_detector(fitted, clean, QuantilePolicy(q=0.9))


@pytest.fixture
def score(site, put_validated, detector):
    """Score rows given in slices; returns the scores by record, the flags and the counts."""

    def score_slices(
        *slices: pa.Table, params: ScoreParams = EVERYTHING, contract: Contract = CONTRACT, use: Detector = detector
    ) -> tuple[pd.DataFrame, pd.DataFrame, tuple[int, int, int]]:
        validated = put_validated(DAY, *slices)
        found = score_batch(site, use, contract, validated, params, secrets.token_hex(4))
        frames = [s.to_pandas() for part in found.parts for s in site.lake.slices(part)]
        scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        return scores, site.lake.read_frame(found.facts["flags"]), tuple(found.facts[name] for name in COUNTS)

    return score_slices


def test_every_row_gets_the_detectors_score_and_rank(score, detector):
    rows = make_rows(300, wild=5)
    scores, flags, (scored, flagged, unseen) = score(rows)
    records, _ = to_records(rows, COLUMNS)
    expected = detector.score(records)
    assert scores["record_id"].tolist() == rows["record_id"].to_pylist()
    assert np.array_equal(scores["score"], expected)
    ranks = [100 * np.mean(detector.calibration.scores < s) for s in expected]
    assert np.allclose(scores["percentile_rank"], ranks, rtol=1e-6)
    assert scored == 300
    assert flagged == len(flags) == (expected > detector.threshold.value).sum() >= 5
    assert unseen == rows["country"].to_pylist().count("SECRETLAND") > 0


@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
def test_scores_and_flags_do_not_depend_on_slicing_or_neighbours(score, monkeypatch, slice_rows):
    rows = make_rows(60, wild=4)
    scores, flags, counts = score(rows)
    monkeypatch.setattr("tasks.stores.lake.SLICE_ROWS", slice_rows)
    sliced, sliced_flags, sliced_counts = score(rows.slice(0, 13), rows.slice(13, 1), rows.slice(14))
    pd.testing.assert_frame_equal(sliced, scores, check_exact=True)
    pd.testing.assert_frame_equal(sliced_flags, flags, check_exact=True)
    assert sliced_counts == counts
    backwards, other_flags, _ = score(rows.take(list(range(59, -1, -1))))
    pd.testing.assert_frame_equal(backwards[::-1].reset_index(drop=True), scores, check_exact=True)
    assert other_flags["record_id"].tolist() == flags["record_id"].tolist()


def test_flags_are_the_rows_strictly_above_the_threshold_worst_first(score, detector):
    scores, flags, _ = score(make_rows(200, wild=3))
    above = scores[scores["score"] > detector.threshold.value].sort_values("score", ascending=False)
    assert flags["record_id"].tolist() == above["record_id"].tolist()
    n = len(detector.calibration.scores)
    expected = [(1 + np.sum(detector.calibration.scores >= s)) / (n + 1) for s in flags["score"]]
    assert np.allclose(flags["p_value"], expected)
    assert not flags["suppressed"].any()
    assert flags["second_stage_probability"].isna().all()


def test_a_score_equal_to_the_threshold_is_not_a_flag(score, detector):
    rows = make_rows(20)
    records, _ = to_records(rows, COLUMNS)
    edge = float(np.sort(detector.score(records))[-2])
    fixed = calibrate_detector(detector, records, FixedPolicy(value=edge))
    _, flags, (_, flagged, _) = score(rows, use=fixed)
    assert flagged == len(flags) == 1


def test_causes_add_up_to_the_score_and_name_the_broken_column(score):
    rows = make_rows(100, wild=3)
    for most in (1, 2, 3, 9):
        _, flags, _ = score(rows, params=ScoreParams(causes=most))
        for row in flags.to_dict("records"):
            causes = json.loads(row["causes"])
            assert len(causes) == min(most, 4) + 1
            assert causes[-1].keys() == {"column", "share"}
            assert causes[-1]["column"] == "other"
            assert sum(cause["share"] for cause in causes) == pytest.approx(row["score"], rel=1e-12)
            shares = [cause["share"] for cause in causes[:-1]]
            assert shares == sorted(shares, reverse=True)
        worst = json.loads(flags["causes"].iloc[0])[0]
        assert worst["column"] == "amount"
        assert worst["actual"] == rows["amount"].to_pylist()[2]


def test_values_of_masked_columns_never_show(score, site):
    _, flags, _ = score(make_rows(200, wild=3), params=ScoreParams(causes=4))
    for causes in map(json.loads, flags["causes"]):
        shown = {cause["column"]: (cause["actual"], cause["expected"]) for cause in causes[:-1]}
        assert shown["spend"] == shown["country"] == (MASKED, MASKED)
        assert shown["amount"] != (MASKED, MASKED)
    written = [path for path in Path(site.lake.root, "scores").rglob("*") if path.is_file()]
    assert len(written) > 3
    assert not any(b"SECRET" in path.read_bytes() for path in written)
    assert "SECRET" not in flags.to_csv()


def test_actual_and_expected_are_in_the_records_own_units(score):
    open_contract = Contract.model_validate({"columns": {"amount": {"type": "float"}}}, strict=False)
    rows = make_rows(50, wild=1).set_column(3, "spend", pa.array([None] + [1.0] * 49))
    _, flags, _ = score(rows, params=ScoreParams(causes=4), contract=open_contract)
    causes = {cause["column"]: cause for cause in json.loads(flags["causes"].iloc[0])}
    assert causes["country"]["actual"] == rows["country"][0].as_py()
    assert causes["country"]["expected"] in ("DE", "FR", "unseen")
    assert causes["event_time"]["actual"].replace(" ", "T") == "2026-03-01T00:00:00+00:00"
    assert causes["event_time"]["expected"].endswith(":00 UTC")
    assert causes["spend"]["actual"] is None


def test_a_cause_may_be_a_patch_a_token_or_the_tokens_without_a_slot():
    units = (Unit(0, "AB"), Unit(0, UNSEEN), Unit(1, "rows 0-6, columns 0-6"))
    shares, actual = np.array([[0.1, 3.0, 2.0]]), np.array([[1.0, 2.0, 12.3456789]])
    explanation = Explanation(units, shares, actual, actual / 2)
    columns = (Column("code", "sequence", ("AB",), tokens=Tokens(words=4)), Column("photo", "image", shape=(7, 7)))
    rows = pa.table({"code": ["QQ AB 7"], "photo": pa.array([bytes(49)], pa.binary(49))})
    [text] = name_causes(explanation, rows, columns, set(), 2)
    assert json.loads(text) == [
        {"column": "code", "part": UNSEEN, "share": 3, "actual": "QQ, 7", "expected": 1},
        {"column": "photo", "part": units[2].part, "share": 2, "actual": 12.3457, "expected": 6.17284},
        {"column": "other", "share": 0.1},
    ]
    [text] = name_causes(explanation, rows, columns, {"code"}, 1)
    hidden = {"part": MASKED, "actual": MASKED, "expected": MASKED}
    assert json.loads(text)[0] == {"column": "code", "share": 3} | hidden


def test_the_cap_keeps_the_worst_and_counts_all(score):
    rows = make_rows(300, wild=30)
    _, everything, (_, flagged, _) = score(rows)
    _, capped, (_, counted, _) = score(rows.slice(0, 20), rows.slice(20), params=ScoreParams(max_alerts=7, causes=2))
    assert flagged == counted == len(everything) >= 30
    pd.testing.assert_frame_equal(capped, everything.head(7), check_exact=True)


def test_an_empty_batch_is_scored_to_nothing(score, site):
    scores, flags, counts = score()
    assert (len(scores), len(flags), counts) == (0, 0, (0, 0, 0))
    full = score(make_rows(50, wild=2))[1]
    assert flags.columns.tolist() == full.columns.tolist()
    assert [str(kind) for kind in flags.dtypes] == [str(kind) for kind in full.dtypes]


def test_a_batch_without_a_flag_has_no_causes(score, detector):
    records, _ = to_records(make_rows(20), COLUMNS)
    _, flags, (scored, flagged, _) = score(
        make_rows(20), use=calibrate_detector(detector, records, FixedPolicy(value=1e9))
    )
    assert (len(flags), scored, flagged) == (0, 20, 0)


def test_the_scores_partition_names_input_and_flags(site, put_validated, detector):
    manifest = score_batch(site, detector, CONTRACT, put_validated(DAY, make_rows(20)), EVERYTHING, "key")
    assert manifest == site.lake.get("scores", "toy", DAY, "key")
    assert manifest.facts["input_hash"] == f"landing of {DAY}"
    assert manifest.facts["flags"] == "scores/toy/batch_date=2026-03-01/inputs=key/flags.parquet"


def test_parts_that_an_attempt_finished_are_not_scored_again(site, put_validated, detector, monkeypatch):
    rows = make_rows(90, wild=9).append_column("shop", pa.array(["north", "south", "west"] * 30))
    params = ScoreParams(max_alerts=5, groups=GroupsParams(by="shop"))
    validated = put_validated(DAY, rows.slice(0, 30), rows.slice(30, 30), rows.slice(60))
    whole = score_batch(site, detector, CONTRACT, validated, params, "whole")
    write, scored = Scoring.score, []

    def die_at_the_third(scoring, name, part, report):
        if name == "part-2" and len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(name)
        return write(scoring, name, part, report)

    monkeypatch.setattr(Scoring, "score", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        score_batch(site, detector, CONTRACT, validated, params, "broken")
    assert site.lake.find("scores", "toy", DAY, "broken") is None
    scored.append("from here on all is well")
    healed = score_batch(site, detector, CONTRACT, validated, params, "broken")
    assert scored == ["part-0", "part-1", "from here on all is well", "part-2"]
    assert [part.sha256 for part in healed.parts] == [part.sha256 for part in whole.parts]
    for name in ("flags", "groups"):
        pd.testing.assert_frame_equal(site.lake.read_frame(healed.facts[name]), site.lake.read_frame(whole.facts[name]))
    assert [healed.facts[name] for name in COUNTS] == [whole.facts[name] for name in COUNTS]
    score_batch(site, detector, CONTRACT, validated, params, "broken")
    assert len(scored) == 4


def test_the_key_of_scores_follows_everything_that_they_depend_on(site, put_validated):
    rows, open_contract = make_rows(20), CONTRACT.model_copy(update={"columns": {}})
    validated, params = put_validated(DAY, rows), ScoreParams()
    key = hash_inputs(site, validated, "bundle", CONTRACT, params)
    assert hash_inputs(site, put_validated(DAY, rows), "bundle", CONTRACT, params) == key  # another attempt, same rows
    assert hash_inputs(site, validated, "bundle", CONTRACT, ScoreParams(bands={"all": 0})) == key
    others = [
        hash_inputs(site, put_validated(DAY, rows.slice(1)), "bundle", CONTRACT, params),
        hash_inputs(site, validated, "a different bundle", CONTRACT, params),
        hash_inputs(site, validated, "bundle", open_contract, params),
        hash_inputs(site, validated, "bundle", CONTRACT, ScoreParams(max_alerts=7)),
        hash_inputs(replace(site, time_zone="Asia/Tokyo"), validated, "bundle", CONTRACT, params),
    ]
    assert len({key, *others}) == 6


def test_one_grouping_is_dumped_as_params_had_it_before_there_could_be_several():
    one = ScoreParams.model_validate({"groups": {"by": "shop", "weight": "amount"}})
    assert one.groups == (GroupsParams(by="shop", weight="amount"),)
    assert one.model_dump(mode="json")["groups"] == {"by": "shop", "weight": "amount"}
    assert ScoreParams().model_dump(mode="json")["groups"] is None
    several = ScoreParams.model_validate({"groups": [{"by": "shop", "q": 0.9}, {"by": "hour"}]})
    dumped = several.model_dump(mode="json")["groups"]
    assert dumped == [{"by": "shop", "weight": None, "q": 0.9}, {"by": "hour", "weight": None}]
    assert ScoreParams.model_validate({"groups": dumped}) == several


def test_scores_of_a_gpu_lie_under_a_key_of_their_own(site, put_validated, monkeypatch):
    # Their last bits differ from the CPU's: two attempts that write under one key must write the same.
    validated = put_validated(DAY, make_rows(20))

    def find_key(device: str) -> str:
        return hash_inputs(replace(site, device=device), validated, "bundle", CONTRACT, ScoreParams())

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    key = find_key("cpu")
    assert find_key("auto") == key
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert find_key("cpu") == key != find_key("auto") == find_key("cuda")


def test_rows_that_another_run_has_just_validated_are_refused(site, put_validated):
    validated = put_validated(DAY, make_rows(20))
    mine = Validation(DAY, f"landing of {DAY}", 20, 20, 0, 0, {})
    refuse_other_input(site, validated, mine)
    with pytest.raises(PublishConflict, match="Another run validated the batch again"):
        refuse_other_input(site, validated, replace(mine, input_hash="what I validated"))


def test_groups_are_scored_from_columns_that_the_detector_need_not_read(site, put_validated, detector):
    rows = make_rows(100).append_column("shop", pa.array(["north", "south"] * 50))
    params = ScoreParams(groups=GroupsParams(by="shop", weight="amount"))
    rows = rows.set_column(2, "amount", pa.array(np.arange(1.0, 101)))
    found = score_batch(site, detector, CONTRACT, put_validated(DAY, rows.slice(0, 7), rows.slice(7)), params, "key")
    scores = detector.score(to_records(rows, COLUMNS)[0])
    found = site.lake.read_frame(found.facts["groups"])
    expected = [np.average(scores[k::2], weights=np.arange(1.0, 101)[k::2]) for k in (0, 1)]
    np.testing.assert_allclose(found["score"], expected)
    assert found[["group", "records"]].values.tolist() == [["north", 50], ["south", 50]]


def test_a_night_without_groups_leaves_none(site, put_validated, detector):
    found = score_batch(site, detector, CONTRACT, put_validated(DAY, make_rows(20)), EVERYTHING, "key")
    assert site.lake.read_frame(found.facts["groups"]).empty


@pytest.mark.parametrize(
    ("rank", "band"), [(0.0, "low"), (98.99, "low"), (99.0, "medium"), (99.9, "high"), (99.995, "critical")]
)
def test_a_band_begins_at_its_rank(rank, band):
    assert ScoreParams().name_band(rank) == band


@pytest.mark.parametrize(
    "bands", [{}, {"low": 1}, {"low": 0, "high": 0}, {"low": 0, "b": 99, "c": 90}, {"a": 0, "b": 100}]
)
def test_bands_that_do_not_rise_from_zero_are_refused(bands):
    with pytest.raises(ValueError, match="bands must be rising percentile ranks"):
        ScoreParams(bands=bands)


def test_progress_counts_rows(put_validated, site, detector):
    reported = []
    validated = put_validated(DAY, make_rows(5), make_rows(7, seed=9))
    report = lambda done, total: reported.append((done, total))  # noqa: E731
    score_batch(site, detector, CONTRACT, validated, EVERYTHING, "key", report)
    assert reported == [(5, 12), (12, 12)]
    score_batch(site, detector, CONTRACT, validated, EVERYTHING, "key", report)
    assert reported[2:] == [(12, 12)]


@pytest.mark.parametrize(
    ("day", "refused"), [(DAY - timedelta(days=1), True), (DAY, True), (DAY + timedelta(days=1), False)]
)
def test_a_day_that_the_model_has_learnt_from_is_refused(site, detector, day, refused):
    learnt = replace(detector, lineage={"trained_through": DAY.isoformat()})
    if not refused:
        check_out_of_sample(site, learnt, day)
        return
    with pytest.raises(LeakageFound) as caught:
        check_out_of_sample(site, learnt, day)
    message = str(caught.value)
    assert all(word in message for word in (f"was trained on {day}", f"trained through {DAY}", f"--cutoff {day}"))


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6),
    most=st.integers(1, 9),
)
def test_the_worst_rows_are_those_of_a_full_sort(batches, most):
    worst, rows = WorstRows(most), []
    for batch in batches:
        names = [f"r{len(rows) + i}" for i in range(len(batch))]
        table = pa.table(
            {"record_id": names, "kind": pa.array([str(s) for s in batch], pa.string()).dictionary_encode()}
        )
        worst.add(table, np.array(batch, float), np.array(names, object))
        rows += zip(names, batch, strict=True)
    expected = sorted(rows, key=lambda row: -row[1])[:most]  # a stable sort: ties keep the earlier row
    found, scores, *beside = worst.take()
    assert scores.tolist() == [score for _, score in expected]
    assert (found["record_id"].to_pylist() if found else []) == [name for name, _ in expected]
    assert (found["kind"].to_pylist() if found else []) == [str(score) for _, score in expected]
    assert [array.tolist() for array in beside] == ([] if found is None else [[name for name, _ in expected]])


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    assert list(read_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]

    def fail():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(read_ahead(fail()))
