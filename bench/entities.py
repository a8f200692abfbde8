"""Scales for each card and thresholds for each country: false alarms and recall by how much a card usually spends.

In the payments simulator all cards spend alike. Here a tenth of them are small accounts, whose honest payments are a
twentieth of what they were, and a tenth are heavy ones, with twenty times as much; thieves take what they took before.
The feed's column amount_to_mean, which is a scale of the card's own, is left out unless --with-means. Tested on the
last seven days, thresholds at the 99th percentile of the detector's calibration days.

    python bench/entities.py --seeds 101 102 103
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from flows.config.params import Configured, load_detector
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import choose_kinds
from models.params import QuantilePolicy
from tasks.filter import split_by_date
from tasks.rows.columns import add_key, describe_columns, mark_entity, to_records
from tasks.rows.judge import judge, read_segments
from tasks.rows.measures import measure
from tasks.rows.params import PerEntityParams
from tasks.sources import payments

PROJECT = Path(__file__).resolve().parents[1]
TEST_DAYS, SHARE, WHOM, WHERE = 7, 0.1, "card_id", "country"
MONEY = ("amount", "spend_1h", "spend_24h")
SETS = ("fit", "stopping", "calibration", "test")
Floats = npt.NDArray[np.float64]


def simulate(configured: Configured, seed: int, factor: float) -> dict[str, pd.DataFrame]:
    """The sets of one seed with the planted cards; kind is "" for honest payments, decile that of the card."""
    detector = configured.detector
    source = detector.ingest.source.model_copy(update={"seed": seed})
    first, last, zone = source.first_date, detector.run.last_date, detector.time_zone
    dates = payments.list_dates(source, first, last)
    known = [day for day in dates[:-TEST_DAYS] if day < dates[-TEST_DAYS] - timedelta(days=detector.label_delay_days)]
    sets = split_by_date(known, detector.filter.splits) | dict.fromkeys(dates[-TEST_DAYS:], "tested")
    sets = {day: {"test": "", "tested": "test"}.get(name, name) for day, name in sets.items()}  # ours are the newest
    frames = []
    for file in payments.list_deliveries(source, zone, first, last):
        truth = payments.read_truth(source, zone, file.batch_date).set_index("record_id")["kind"]
        for frame in payments.read_file(source, zone, file):
            kind = frame["payment_id"].map(truth).fillna("").astype(str)
            frames.append(frame.assign(kind=kind, set=sets.get(file.batch_date, "")))
    rows = pd.concat(frames, ignore_index=True)
    # Drop what validation quarantines or excludes.
    rows = rows[np.isfinite(rows["amount"]) & (rows["amount"] > 0) & rows["country"].notna()]
    rows = rows[rows["event_time"].notna()].drop_duplicates("payment_id").drop(columns="wallet", errors="ignore")
    rows = plant_levels(rows.sort_values("event_time", ignore_index=True), seed, factor)
    found = {name: own.drop(columns="set") for name, own in rows.groupby("set") if name in SETS}
    return {name: own if name == "test" else own[own["kind"] == ""] for name, own in found.items()}


def plant_levels(rows: pd.DataFrame, seed: int, most: float) -> pd.DataFrame:
    """Make small and heavy accounts of the honest payments of some cards, and add their money up again."""
    cards = np.sort(rows[WHOM].unique())
    draw = np.random.default_rng(seed).random(len(cards))
    factors = pd.Series(np.select([draw < SHARE, draw > 1 - SHARE], [1 / most, most], 1.0), cards)
    factor = rows[WHOM].map(factors).to_numpy()
    amount = np.where(rows["kind"] == "", rows["amount"] * factor, rows["amount"]).round(2).clip(min=0.01)
    rows = rows.assign(amount=amount, amount_to_mean=rows["amount_to_mean"] * amount / rows["amount"] / factor)
    for hours, name in ((1, "spend_1h"), (24, "spend_24h")):
        rows[name] = add_up(rows, hours)
    usual = rows[rows["kind"] == ""].groupby(WHOM)["amount"].median()
    deciles = pd.qcut(usual.rank(method="first"), 10, labels=False) + 1
    return rows.assign(decile=rows[WHOM].map(deciles))


def add_up(rows: pd.DataFrame, hours: int) -> Floats:
    """What each card had spent in the last `hours` hours at each payment, that payment included."""
    card, at = rows[WHOM].factorize()[0], rows["event_time"].astype("int64").to_numpy()
    at = at - at.min()
    order = np.lexsort([at, card])
    span = at.max() + 48 * payments.HOUR_US
    key, totals = (card * span + at)[order], np.concatenate([[0.0], np.cumsum(rows["amount"].to_numpy()[order])])
    starts, ends = (
        np.searchsorted(key, key - hours * payments.HOUR_US, "right"),
        np.searchsorted(key, key, "right"),
    )
    found = np.empty(len(rows))
    found[order] = (totals[ends] - totals[starts]).round(2)
    return found


def fit(
    configured: Configured, tables: dict[str, pa.Table], scales: PerEntityParams | None, by: str | None, means: bool
) -> Detector:
    """Train and calibrate as tasks/train.py and tasks/calibrate.py do, on one thread."""
    learn = configured.detector.train
    columns = learn.columns
    if not means:
        kept = tuple(name for name in columns.log_numeric if name != "amount_to_mean")
        columns = columns.model_copy(update={"log_numeric": kept})
    described = describe_columns(columns, tables["fit"])
    described = mark_entity(described, WHOM, scales) if scales else described
    records, stopping = (to_records(tables[name], described)[0] for name in ("fit", "stopping"))
    params = ModelParams(networks=learn.networks, fit=learn.fit, score=learn.score, threads=1)
    chosen = choose_kinds(described, records, learn.encode)
    fitted = fit_detector(chosen, records, stopping, params, torch.device("cpu"))
    fitted = replace(fitted, columns=add_key(fitted.columns, by)) if by else fitted
    clean, _ = to_records(tables["calibration"], fitted.columns)
    segments = (by, read_segments(tables["calibration"][by])) if by else None
    return calibrate_detector(fitted, clean, QuantilePolicy(q=0.99), by=segments)


def list_variants(minimums: list[int]) -> Iterator[tuple[str, PerEntityParams | None, str | None]]:
    """The detectors to compare, each with a name."""
    yield "one scale", None, None
    for minimum in minimums:
        yield f"per card, minimum {minimum}", PerEntityParams(scale=MONEY, minimum=minimum), None
    yield f"one scale, by {WHERE}", None, WHERE
    yield f"per card, minimum {minimums[0]}, by {WHERE}", PerEntityParams(scale=MONEY, minimum=minimums[0]), WHERE


def judge_test(detector: Detector, test: pd.DataFrame, table: pa.Table) -> dict[str, dict[str, float]]:
    """False alarms by decile and by country, and recall by kind of account."""
    judged = judge(detector, table)
    flag, is_fraud = pd.Series(judged.is_flagged, test.index), test["kind"] != ""
    honest, frauds = test[~is_fraud], test[is_fraud]
    whole = measure(judged.score, is_fraud.to_numpy(), judged.threshold)
    recall = {f"decile {n}": flag[frauds.index[frauds["decile"] == n]].mean() for n in (1, 10)}
    others = frauds.index[frauds["decile"].between(2, 9)]
    by_decile, by_country = honest.groupby("decile"), honest.groupby(WHERE)
    return {
        "false alarms by decile": {str(n): flag[own.index].mean() for n, own in by_decile},
        f"false alarms by {WHERE}": {str(n): flag[own.index].mean() for n, own in by_country if len(own) > 99},
        "recall": {"small (1)": recall["decile 1"], "2 to 9": flag[others].mean(), "heavy (10)": recall["decile 10"]},
        "all": {
            "precision": whole.precision or 0.0, "recall": whole.recall or 0.0, "AUROC": whole.auroc or 0.0,
            "average precision": whole.average_precision or 0.0, "false alarms": whole.false_alarm_rate or 0.0,
        },
    }  # fmt: skip


def show(results: dict[str, list[dict[str, dict[str, float]]]]) -> None:
    """A table for each group of figures: the mean over the simulations, and their standard deviation."""
    for group in next(iter(results.values()))[0]:
        frames = {name: pd.DataFrame([found[group] for found in runs]) for name, runs in results.items()}
        columns = next(iter(frames.values())).columns
        is_rate = group.startswith("false alarms")
        print(f"\n{group}, {'%' if is_rate else 'share'}: mean ± standard deviation of the simulations")
        titles = [*columns, *(["highest/lowest"] if is_rate else [])]
        print(f"{'':34}" + "".join(f"{name:>18}" for name in titles))
        for name, frame in frames.items():
            unit, form = (100, ".2f") if is_rate else (1, ".3f")
            mean, spread = frame.mean() * unit, frame.std(ddof=0) * unit
            cells = [f"{mean[column]:{form}} ± {spread[column]:{form}}" for column in columns]
            cells += [f"{mean.max() / max(mean.min(), 1e-9):.1f}"] if is_rate else []
            print(f"{name:34}" + "".join(f"{cell:>18}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="simulations")
    parser.add_argument("--minimums", type=int, nargs="+", default=[30, 5], help="train.per_entity.minimum")
    parser.add_argument("--factor", type=float, default=20.0, help="of the planted accounts; 1 plants none")
    parser.add_argument("--with-means", action="store_true", help="keep the feed's column amount_to_mean")
    options = parser.parse_args()
    torch.set_num_threads(1)
    configured = load_detector(PROJECT, "payments")
    results: dict[str, list[dict[str, dict[str, float]]]] = {}
    for seed in options.seeds:
        frames = simulate(configured, seed, options.factor)
        tables = {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in frames.items()}
        for name, scales, by in list_variants(options.minimums):
            detector = fit(configured, tables, scales, by, options.with_means)
            results.setdefault(name, []).append(judge_test(detector, frames["test"], tables["test"]))
        frauds = frames["test"][frames["test"]["kind"] != ""]
        small = int((frauds["decile"] == 1).sum())
        print(f"seed {seed}: {len(frames['fit']):,} fit rows, {frames['fit'][WHOM].nunique():,} cards; {len(frauds):,} "
              f"frauds, {small} of them on small accounts", file=sys.stderr)  # fmt: skip
    show(results)


if __name__ == "__main__":
    main()
