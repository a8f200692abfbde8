import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.params import AutoencoderParams, FitParams, QuantilePolicy
from tasks.errors import RecordInvalid
from tasks.on_demand.rank import rank_record
from tasks.rows.columns import to_records
from tasks.rows.contract import Contract
from tasks.rows.params import ScoreParams
from tasks.stores.registry import Version

COLUMNS = (Column("amount", "numeric"), Column("items", "numeric"), Column("country", "categorical", ("DE", "FR")))
CONTRACT = Contract.model_validate(
    {
        "columns": {
            "amount": {"type": "float"},
            "items": {"type": "int", "nullable": True},
            "country": {"type": "text", "masked": True},
            "limit": {"type": "float"},
        },
        "expectations": [
            {
                "level": "row",
                "type": "expect_column_values_to_be_between",
                "kwargs": {"column": "amount", "max_value": 1000},
            },
            {
                "level": "row",
                "type": "expect_column_pair_values_a_to_be_greater_than_b",
                "kwargs": {"column_A": "limit", "column_B": "amount"},
            },
        ],
    },
    strict=False,
)
VERSION = Version("nightjar-toy", 3, ("champion",), {})
PARAMS = ScoreParams(causes=2, bands={"usual": 0, "rare": 90, "alarming": 99})


@pytest.fixture(scope="module")
def detector() -> Detector:
    params = ModelParams(
        networks=(AutoencoderParams(layers=(4, 2, 4)),), fit=FitParams(epochs=2, batch_size=64, seed=1), threads=1
    )
    rng = np.random.default_rng(1)
    rows = pa.table(
        {"amount": rng.normal(size=600), "items": rng.poisson(3, 600), "country": rng.choice(["DE", "FR"], 600)}
    )
    records, _ = to_records(rows, COLUMNS)
    fitted = fit_detector(COLUMNS, records[:300], records[300:400], params, torch.device("cpu"))
    return calibrate_detector(fitted, records[400:], QuantilePolicy(q=0.9))


def rank(detector: Detector, **values: str):
    return rank_record(detector, VERSION, CONTRACT, values, PARAMS)


def test_a_record_gets_the_score_that_a_night_would_give_it(detector):
    found = rank(detector, amount="0.25", items="3", country="DE")
    records, _ = to_records(pa.table({"amount": [0.25], "items": [3], "country": ["DE"]}), COLUMNS)
    [score] = detector.score(records)
    assert found.score == score
    assert found.percentile_rank == 100 * np.mean(detector.calibration.scores < score)
    assert found.is_flagged == (score > detector.threshold.value)
    assert sum(cause["share"] for cause in found.causes) == pytest.approx(score)
    assert (found.model, found.model_version) == ("nightjar-toy", 3)


def test_the_band_follows_the_rank(detector):
    assert rank(detector, amount="0", items="3", country="DE").band == "usual"
    wild = rank(detector, amount="900", items="3", country="DE")
    assert (wild.band, wild.percentile_rank, wild.causes[0]["column"]) == ("alarming", 100, "amount")


def test_a_masked_value_is_not_shown(detector):
    assert "ATLANTIS" not in json.dumps(rank(detector, amount="0", items="3", country="ATLANTIS").causes)
    with pytest.raises(RecordInvalid) as refused:
        rank(detector, country="ATLANTIS", amount="SECRET")
    assert "ATLANTIS" not in str(refused.value)


def test_a_nullable_column_may_be_left_out_or_missing_by_any_word_for_it(detector):
    left_out = rank(detector, amount="0", country="DE")
    assert np.isfinite(left_out.score)
    assert all(
        rank(detector, amount="0", country="DE", items=word).score == left_out.score for word in ("", "N/A", r"\N")
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amount": "1"}, "required but missing: country"),
        ({"amount": "1", "country": "DE", "amuont": "2"}, "no such column: amuont"),
        ({"amount": "one", "country": "DE"}, r"not readable as its type: amount \(double\)"),
        ({"amount": "1", "country": "DE", "items": "2.5"}, r"items \(int64\)"),
        ({"amount": "1001", "country": "DE"}, "amount column values to be between"),
        ({"amount": "10", "country": "DE", "limit": "5"}, "greater than b"),
        ({"amount": "inf", "country": "DE"}, "amount column values to be between"),
    ],
)
def test_what_a_night_would_quarantine_is_refused(detector, values, message):
    with pytest.raises(RecordInvalid, match=message):
        rank(detector, **values)


def test_expectations_of_two_columns_are_judged_once_both_are_given(detector):
    assert (
        rank(detector, amount="10", country="DE", limit="50").score == rank(detector, amount="10", country="DE").score
    )
