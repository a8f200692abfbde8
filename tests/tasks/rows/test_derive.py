"""History columns against a slow calculation that looks at every earlier record of every record."""

import math
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objects import ObjectStore

from tasks.rows.derive import derive_history
from tasks.rows.history import EnrichParams
from tasks.sources.payments import PaymentsSource, list_deliveries, read_file, read_reports
from tasks.stores.lake import Lake, Part

NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)
HISTORY = EnrichParams.model_validate(
    {
        "entity": "card",
        "windows": ["90s", "1h", "2d"],
        "columns": {
            "n_{window}": {"count": "*"},
            "spent_{window}": {"sum": "amount"},
            "shops_{window}": {"distinct": "shop"},
            "to_mean": {"ratio": "amount", "to": "mean", "window": "1h"},
            "to_max": {"ratio": "amount", "to": "max"},
            "km": {"distance": ["lat", "lon"]},
            "since": {"seconds_since": "previous"},
            "new_shop": {"first_seen": "shop", "window": "1h"},
            "bad_{window}": {"count": "reports"},
            "of shop": {"count": "*", "by": "shop", "window": "1h"},
            "N_1H": {"sum": "amount", "window": "1h"},
            "part": {"count": "*", "window": "90s"},
            "line": {"count": "*", "window": "1h"},
            "bad shop": {"count": "reports", "by": "shop", "window": "1h"},
        },
    },
    strict=False,
)
WINDOWS = {"90s": 90, "1h": 3600, "2d": 172_800}
SCHEMA = pa.schema(
    {
        "record_id": pa.string(),
        "event_time": pa.timestamp("us", "UTC"),
        "card": pa.string(),
        "shop": pa.int64(),
        "amount": pa.float64(),
        "lat": pa.float64(),
        "lon": pa.float64(),
        "part": pa.string(),  # a user's column may have any name
    }
)


def compute(rows: list[dict[str, Any]], known_at: dict[str, datetime]) -> list[dict[str, Any]]:
    """The history columns of each row, from all rows, one by one."""
    return [compute_one(row, rows, known_at) for row in rows]


def compute_one(row: dict[str, Any], rows: list[dict[str, Any]], known_at: dict[str, datetime]) -> dict[str, Any]:
    key = (row["event_time"], row["record_id"])

    def find(by: str, seconds: float) -> list[dict[str, Any]]:
        """Earlier records of the same entity in the window, in order."""
        oldest = row["event_time"] - timedelta(seconds=seconds)
        found = [r for r in rows if r[by] == row[by] and (r["event_time"], r["record_id"]) < key]
        return sorted((r for r in found if r["event_time"] > oldest), key=lambda r: (r["event_time"], r["record_id"]))

    def count_bad(found: list[dict[str, Any]]) -> int:
        return sum(known_at.get(r["record_id"], datetime.max.replace(tzinfo=UTC)) <= row["event_time"] for r in found)

    found: dict[str, Any] = {}
    if row["card"] and row["card"].strip():
        for name, seconds in WINDOWS.items():
            window = find("card", seconds)
            found[f"n_{name}"] = len(window)
            found[f"spent_{name}"] = math.fsum(r["amount"] for r in window if is_number(r["amount"]))
            found[f"shops_{name}"] = len({r["shop"] for r in window} - {None})
            found[f"bad_{name}"] = count_bad(window)
        amounts = {
            name: [r["amount"] for r in find("card", WINDOWS[name]) if is_number(r["amount"])] for name in WINDOWS
        }
        found |= {"N_1H": found["spent_1h"], "part": found["n_90s"], "line": found["n_1h"]}  # any name may be used
        found["to_mean"] = divide(row["amount"], math.fsum(amounts["1h"]) / max(1, len(amounts["1h"])))
        found["to_max"] = divide(row["amount"], max(amounts["2d"], default=0))
        if window:
            found["since"] = (row["event_time"] - window[-1]["event_time"]).total_seconds()
            found["km"] = measure_km(window[-1], row)
        seen = {r["shop"] for r in find("card", 3600)}
        found["new_shop"] = None if row["shop"] is None else row["shop"] not in seen
    if row["shop"] is not None:
        found["of shop"] = len(find("shop", 3600))
        found["bad shop"] = count_bad(find("shop", 3600))
    return {name: found.get(name) for name in HISTORY.history}


def is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def divide(a: float | None, b: float) -> float | None:
    return None if a is None or not math.isfinite(a) or b == 0 else a / b


def measure_km(a: dict[str, Any], b: dict[str, Any]) -> float | None:
    """By the angle between two unit vectors, another formula than the product's."""
    if None in (a["lat"], a["lon"], b["lat"], b["lon"]):
        return None
    vectors = []
    for place in (a, b):
        lat, lon = math.radians(place["lat"]), math.radians(place["lon"])
        vectors.append(np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)]))
    return 6371.0088 * math.atan2(float(np.linalg.norm(np.cross(*vectors))), float(np.dot(*vectors)))


def write(lake: Lake, name: str, rows: list[dict[str, Any]]) -> tuple[Part, ...]:
    """The rows as two parts of a partition."""
    partition = lake.write("validated", name, date(2026, 3, 29))
    for number, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        with partition.part(f"part-{number}") as part:
            part.append(pa.Table.from_pylist(some, SCHEMA))
    return tuple(partition.parts)


def make_rows(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    """Rows of few cards and shops within some hours, many at the same instant, with gaps in every column."""

    def gap(value: Any, share: float = 0.1) -> Any:
        return None if rng.random() < share else value

    return [
        {
            "record_id": f"r{number:03d}",
            "event_time": NOON + timedelta(seconds=int(rng.integers(0, 300)) * int(rng.choice([1, 30, 900]))),
            "card": gap(gap(f"card-{rng.integers(3)}"), 0.02) or rng.choice([None, "", " "]),
            "shop": gap(int(rng.integers(4))),
            "amount": gap(float(rng.choice([0.1, 0.7, 12.34, 1e9, -3.0, math.inf, math.nan]))),
            "lat": gap(float(rng.uniform(-90, 90))),
            "lon": gap(float(rng.uniform(-180, 180))),
            "part": "x",
        }
        for number in rng.permutation(n)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_history_is_that_of_a_slow_calculation(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, 120)
    known_at = {f"r{n:03d}": NOON + timedelta(seconds=int(rng.integers(0, 90_000))) for n in range(0, 120, 5)}
    reports = pa.table(
        {"record_id": list(known_at), "known_at": pa.array(known_at.values(), pa.timestamp("us", "UTC"))}
    )
    lake = Lake(str(tmp_path))
    cut = int(rng.integers(0, 120))
    targets, earlier = write(lake, "targets", rows[cut:]), write(lake, "earlier", rows[:cut])
    table = pa.concat_tables(derive_history(lake, HISTORY, targets, earlier, reports))
    assert_equal(table.to_pylist(), compute(rows, known_at)[cut:])
    loose = pa.Table.from_pylist(rows[cut:], SCHEMA)
    again = pa.concat_tables(derive_history(lake, HISTORY, loose, (*earlier, *targets), reports))
    assert again.equals(table)  # the same bits; what the lake has of these records is not counted twice


def test_a_record_without_an_id_comes_after_all_of_its_instant(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    row = {"record_id": None, "event_time": NOON, "card": "c", "shop": 1, "amount": 2.0}
    earlier = [row | {"record_id": "r1", "event_time": NOON - timedelta(seconds=30)}, row | {"record_id": "r2"}]
    table = pa.concat_tables(
        derive_history(lake, HISTORY, pa.Table.from_pylist([row], SCHEMA), write(lake, "earlier", earlier))
    )
    assert (table["n_90s"].to_pylist(), table["spent_1h"].to_pylist(), table["since"].to_pylist()) == (
        [2],
        [4.0],
        [0.0],
    )


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(HISTORY.history)
        for name, value in other.items():
            error = 1e-3 if name == "km" else 1e-12
            assert one[name] == (value and pytest.approx(value, rel=1e-12, abs=error)), name


def test_counts_are_integers_and_first_seen_is_a_boolean(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    targets = write(lake, "targets", make_rows(np.random.default_rng(1), 10))
    table = pa.concat_tables(derive_history(lake, HISTORY, targets, ()))
    kinds = {name: str(table.schema.field(name).type) for name in ("n_1h", "shops_2d", "spent_1h", "km", "new_shop")}
    assert kinds == {"n_1h": "int64", "shops_2d": "int64", "spent_1h": "double", "km": "double", "new_shop": "bool"}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_a_sum_does_not_depend_on_the_order_of_the_rows(tmp_path: Path, amounts: list[float], random: Any) -> None:
    params = EnrichParams.model_validate(
        {"entity": "card", "windows": ["1d"], "columns": {"spent": {"sum": "amount"}}}, strict=False
    )
    rows = [
        {"record_id": f"r{n}", "event_time": NOON + timedelta(seconds=n), "card": "c", "amount": amount}
        for n, amount in enumerate(amounts)
    ]
    shuffled = random.sample(rows, len(rows))
    lake = Lake(str(tmp_path))
    found = []
    for some in (rows, shuffled):
        table = pa.Table.from_pylist(some, SCHEMA)
        result = pa.concat_tables(derive_history(lake, params, table, ()))
        found.append(dict(zip(table["record_id"].to_pylist(), result["spent"].to_pylist(), strict=True)))
    assert found[0] == found[1]
    assert found[0]["r1"] == pytest.approx(amounts[0], rel=1e-14, abs=1e-14)


def test_history_is_that_of_the_simulator_without_the_record_itself(tmp_path: Path) -> None:
    source = PaymentsSource(kind="payments", seed=7, rows_per_day=2000, first_date=date(2026, 9, 22))
    zone, last = "Europe/Berlin", date(2026, 10, 24)
    files = list_deliveries(source, zone, source.first_date, last)
    rows = pd.concat([frame for file in files for frame in read_file(source, zone, file)], ignore_index=True)
    is_dirty = rows["payment_id"].duplicated(keep=False) | rows["event_time"].isna() | ~rows["amount"].between(0, 1e9)
    dirty = {*rows.loc[is_dirty, "card_id"]}
    rows = rows[rows["event_time"].notna()].drop_duplicates("payment_id").rename(columns={"payment_id": "record_id"})
    is_today = rows["event_time"] >= pd.Timestamp(last, tz=zone)
    lake = Lake(str(tmp_path))
    earlier = lake.write("validated", "payments", last)
    with earlier.part("part-0") as part:
        part.append(pa.Table.from_pandas(rows[~is_today], preserve_index=False))
    params = EnrichParams.model_validate(
        {
            "entity": "card_id",
            "windows": ["1h", "24h", "28d"],
            "columns": {
                "n_{window}": {"count": "*"},
                "spent_{window}": {"sum": "amount"},
                "reports": {"count": "reports", "by": "terminal_id"},
            },
        },
        strict=False,
    )
    told = pd.concat(read_reports(source, zone, source.first_date, last))
    reports = pa.Table.from_pandas(told[["record_id", "known_at"]], preserve_index=False)
    today = rows[is_today].reset_index(drop=True)
    table = pa.Table.from_pandas(today, preserve_index=False)
    found = pa.concat_tables(derive_history(lake, params, table, tuple(earlier.parts), reports)).to_pandas()
    clean = ~today["card_id"].isin(dirty)
    assert clean.sum() > 1000
    for window in ("1h", "24h"):
        assert (found[f"n_{window}"] + 1)[clean].tolist() == today[f"payments_{window}"][clean].tolist()
        spent = found[f"spent_{window}"] + today["amount"]
        assert spent[clean].tolist() == pytest.approx(today[f"spend_{window}"][clean].tolist(), rel=1e-12)
    assert found["reports"].tolist() == today["terminal_reports_28d"].tolist()
    assert found["reports"].max() > 3


def test_parts_in_an_object_store_give_the_same_history(object_store: ObjectStore, tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(5), 60)
    found = []
    for lake in (Lake(f"s3://{object_store.make_bucket()}/some/where"), Lake(str(tmp_path))):
        targets, earlier = write(lake, "targets", rows[20:]), write(lake, "earlier", rows[:20])
        found.append(pa.concat_tables(derive_history(lake, HISTORY, targets, earlier)))
    assert found[0].equals(found[1])
    assert found[0].num_rows == 40
