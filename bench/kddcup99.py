"""The kddcup99 detector over several seeds, by attack and without repeated rows, with plots of its latent space.

    dvc repro filter@kddcup99 && python bench/kddcup99.py --pictures docs

--protocols also deals the normal rows at random, and compares the recipe of params.yaml with that of init: when does a
threshold hold for the rows that come later? Each seed fits the clean rows of the experiment again. Published
(variational autoencoder, 99th percentile): precision 0.99, recall 0.89, F1 0.93.
"""

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from matplotlib.figure import Figure

from flows.experiment import load_experiment
from models.columns import Column
from models.detector import Detector, ModelParams, calibrate_detector, fit_detector
from models.encoders import Encoder, choose_kinds, encode_records
from models.params import AutoencoderParams, Networks, QuantilePolicy, VariationalParams
from models.records import Records
from tasks.filter import BATCH_DATE, LABEL, read_set
from tasks.on_demand.examine import find_repeats
from tasks.onboarding.draft import choose_training
from tasks.pages.pictures import ANOMALOUS, NORMAL, SHOWN_POINTS, project
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.measures import measure, recall_by_kind
from tasks.rows.params import TrainParams

SETUP = load_experiment("kddcup99")
PARAMS = SETUP.configured.detector.train
NAMES = ("precision", "recall", "f1", "false_alarm_rate", "auroc")


def fit(
    sets: dict[str, Records], columns: tuple[Column, ...], networks: Networks, seed: int, learn: TrainParams = PARAMS
) -> Detector:
    learnt = ModelParams(networks=networks, fit=learn.fit.model_copy(update={"seed": seed}), score=learn.score)
    fitted = fit_detector(columns, sets["fit"], sets["stopping"], learnt, torch.device("cpu"))
    return calibrate_detector(fitted, sets["calibration"], QuantilePolicy())


def deal(tables: dict[str, pa.Table], seed: int) -> dict[str, pa.Table]:
    """The same sets with the normal rows dealt at random; the attacks stay."""
    normal = {name: rows.filter(pc.not_equal(rows[LABEL], 1)) for name, rows in tables.items()}
    pool = pa.concat_tables(normal.values())
    pool = pool.take(pa.array(np.random.default_rng(seed).permutation(pool.num_rows)))
    dealt, start = {}, 0
    for name, rows in normal.items():
        own = pool.slice(start, rows.num_rows)
        dealt[name] = pa.concat_tables([own, tables[name].filter(pc.equal(tables[name][LABEL], 1))])
        start += rows.num_rows
    return dealt


def compare_protocols(tables: dict[str, pa.Table], seeds: int) -> None:
    """Print the metrics of both recipes under both protocols, and each night's false alarms, as means over seeds."""
    recipes = {"params.yaml": PARAMS, "init": choose_training(PARAMS.columns, tables["fit"].num_rows, ())}
    for protocol in ("leading 80 %", "random 80 %"):
        for name, learn in recipes.items():
            found, nights = [], []
            for seed in range(1, seeds + 1):
                chosen = tables if protocol.startswith("leading") else deal(tables, seed)
                described = describe_columns(PARAMS.columns, chosen["fit"])
                sets = {each: to_records(table, described)[0] for each, table in chosen.items()}
                detector = fit(sets, choose_kinds(described, sets["fit"], learn.encode), learn.networks, seed, learn)
                scores, threshold = detector.score(sets["test"]), detector.threshold
                is_attack = chosen["test"][LABEL].to_numpy() == 1
                measured = measure(scores, is_attack, threshold.value)
                found.append([getattr(measured, metric) for metric in NAMES])
                days = chosen["test"][BATCH_DATE].to_pandas()[~is_attack]
                alarms = pd.Series(scores[~is_attack] > threshold.value)
                nights.append(alarms.groupby(days.to_numpy()).agg(["mean", "size"]))
            print(f"{protocol}, {name}: stated {threshold.interval_low:.2%} to {threshold.interval_high:.2%}")
            for metric, values in zip(NAMES, np.array(found).T, strict=True):
                print(f"    {metric} {values.mean():.4f} ({values.min():.4f} to {values.max():.4f})")
            joined = pd.concat(nights).groupby(level=0).mean()
            for day, night in joined.iterrows():
                print(f"    {day}: {night['mean']:.2%} false alarms of {night['size']:,.0f} normal rows", flush=True)


def compare_last_night(seeds: int) -> None:
    """Print what both recipes do on the last night, fitted and calibrated on the normal rows of the nights before."""
    lake = SETUP.site.lake
    *before, last = lake.dates("validated", "kddcup99")
    past, night = (pa.concat_tables(read_validated(days)) for days in (before, [last]))
    past = past.filter(pc.equal(past["label"], "normal."))
    is_attack = pc.not_equal(night["label"], "normal.").to_numpy()
    recipes = {"params.yaml": PARAMS, "init": choose_training(PARAMS.columns, past.num_rows, ())}
    # The set of each normal row in order; rows after the last bound are test rows, which a night needs none of.
    bounds = {"leading": (0.72, 0.75, 0.8), "leading, latest calibrate": (0.72, 0.75, 1.0), "random": (0.72, 0.75, 0.8)}
    for protocol, shares in bounds.items():
        for name, learn in recipes.items():
            found = []
            for seed in range(1, seeds + 1):
                order = np.arange(past.num_rows)
                if protocol == "random":
                    order = np.random.default_rng(seed).permutation(order)
                pieces = np.split(order, np.round(past.num_rows * np.array(shares)).astype(int))[:3]
                parts = (past.take(pa.array(piece)) for piece in pieces)
                dealt = dict(zip(("fit", "stopping", "calibration"), parts, strict=True))
                described = describe_columns(PARAMS.columns, dealt["fit"])
                sets = {each: to_records(table, described)[0] for each, table in dealt.items()}
                detector = fit(sets, choose_kinds(described, sets["fit"], learn.encode), learn.networks, seed, learn)
                scores, threshold = detector.score(to_records(night, described)[0]), detector.threshold
                found.append([getattr(measure(scores, is_attack, threshold.value), metric) for metric in NAMES])
            print(f"last night, {protocol}, {name}: stated "
                  f"{threshold.interval_low:.2%} to {threshold.interval_high:.2%}")  # fmt: skip
            for metric, values in zip(NAMES, np.array(found).T, strict=True):
                print(f"    {metric} {values.mean():.4f} ({values.min():.4f} to {values.max():.4f})", flush=True)


def read_validated(days: Sequence[date]) -> list[pa.Table]:
    lake = SETUP.site.lake
    return [rows for day in days for part in lake.get("validated", "kddcup99", day).parts for rows in lake.slices(part)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=Path, help="folder for plots of the latent space")
    parser.add_argument("--protocols", action="store_true", help="compare both protocols and both recipes instead")
    options = parser.parse_args()
    lake = SETUP.site.lake
    [cutoff] = lake.dates("clean", "kddcup99")
    tables = {name: read_set(lake, "kddcup99", cutoff, name) for name in ("fit", "stopping", "calibration", "test")}
    if options.protocols:
        compare_protocols(tables, options.seeds)
        compare_last_night(options.seeds)
        return
    described = describe_columns(PARAMS.columns, tables["fit"])
    sets = {name: to_records(table, described)[0] for name, table in tables.items()}
    columns = choose_kinds(described, sets["fit"], PARAMS.encode)
    is_attack, kinds = tables["test"][LABEL].to_numpy() == 1, tables["test"]["label"].to_pandas()
    once = ~find_repeats(encode_records(Encoder(columns).fit(sets["fit"]), sets["test"]).numpy())

    found, recalls = [], []
    for seed in range(1, options.seeds + 1):
        detector = fit(sets, columns, PARAMS.networks, seed)
        scores, threshold = detector.score(sets["test"]), detector.threshold.value
        whole = measure(scores, is_attack, threshold)
        unique = measure(scores[once], is_attack[once], threshold)
        found.append([getattr(m, name) for m in (whole, unique) for name in NAMES])
        recalls.append(recall_by_kind(scores > threshold, is_attack, kinds).set_index("kind"))
        print(f"seed {seed}: " + ", ".join(f"{n} {v:.4f}" for n, v in zip(NAMES, found[-1], strict=False)), flush=True)
    table = np.array(found).reshape(options.seeds, 2, len(NAMES))
    for place, rows in ((0, "all test rows"), (1, f"without repeated rows ({once.sum():,})")):
        for position, name in enumerate(NAMES):
            column = table[:, place, position]
            print(f"{rows}: {name} mean {column.mean():.4f}, {column.min():.4f} to {column.max():.4f}")
    for kind, row in recalls[0].iterrows():
        print(f"recall {kind:18} {row['rows']:6} rows {np.mean([r.loc[kind, 'recall'] for r in recalls]):7.1%}")
    if options.pictures:
        draw(options.pictures, sets, columns, is_attack)


def draw(folder: Path, sets: dict[str, Records], columns: tuple[Column, ...], is_attack: np.ndarray) -> None:
    [variational] = PARAMS.networks
    assert isinstance(variational, VariationalParams)
    layers = (*variational.hidden, variational.latent, *reversed(variational.hidden))
    networks = {
        "reconstruction only": variational.model_copy(update={"kl_weight": 0.0}),
        "KL divergence only": variational.model_copy(update={"kl_weight": 1e6}),
        "both": variational,
        "plain autoencoder": AutoencoderParams(layers=layers, activation=variational.activation),
    }
    spaces = {name: fit(sets, columns, (network,), 1).encode(sets["test"]) for name, network in networks.items()}
    losses = ("reconstruction only", "KL divergence only", "both")
    compare_latent(folder / "kddcup99-losses.png", {name: spaces[name] for name in losses}, is_attack)
    pair = {"autoencoder": spaces["plain autoencoder"], "variational autoencoder": spaces["both"]}
    compare_latent(folder / "kddcup99-networks.png", pair, is_attack)


def compare_latent(path: Path, spaces: dict[str, np.ndarray], is_anomaly: np.ndarray) -> None:
    """Plot latent spaces (N, Z) of several networks side by side, each on its own principal components."""
    figure = Figure(figsize=(4.5 * len(spaces), 4), dpi=70, layout="constrained")
    panels = figure.subplots(1, len(spaces))
    chosen = np.unique(np.linspace(0, len(is_anomaly) - 1, SHOWN_POINTS).astype(int))
    for axes, (title, latent) in zip(panels, spaces.items(), strict=True):
        places = project(latent)[chosen]
        for mask, colour in ((~is_anomaly[chosen], NORMAL), (is_anomaly[chosen], ANOMALOUS)):
            axes.scatter(*places[mask].T, color=colour, s=4, alpha=0.5)
        axes.set(title=title, xlabel="1st principal component", ylabel="2nd")
    figure.savefig(path)


if __name__ == "__main__":
    main()
