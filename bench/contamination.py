"""Hidden anomalies among unlabelled rows: false alarms and recall of the threshold, with and without trimming.

    python bench/contamination.py adbench/*.npz --seeds 6

Of each table (arrays X and y) the rows to fit, stop and calibrate on get a share of anomalies without labels;
false alarms and recall are measured on other rows. Columns, networks and scores are those of `nightjar init`, with
fewer epochs, and the suspected 1 % of fit rows are left out as there. Clean: the threshold of the same detector
without the anomalies among its calibration rows. Tables with too few anomalies for a share are left out.
"""

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from models.calibration import fit_threshold
from models.detector import ModelParams, fit_detector
from models.encoders import choose_kinds
from models.params import NeighboursParams, QuantilePolicy, ResidualParams, ScoringParams
from tasks.filter import find_outliers
from tasks.onboarding.draft import Request, draft_detector
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.schema import type_rows
from tasks.sources.arrival import Arrival
from tasks.sources.files import FilesSource

Floats = npt.NDArray[np.float64]
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05)
POLICY = QuantilePolicy(q=0.99)
TESTED, FEWEST_ANOMALIES = 20_000, 30


def make_table() -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Eight related numbers, of which an anomaly has one that does not fit the others: (N, 8) and (N,)."""
    rng, n, anomalies = np.random.default_rng(5), 12_000, 700
    x = rng.normal(size=(n + anomalies, 3)) @ rng.normal(size=(3, 8)) + rng.normal(0, 0.3, (n + anomalies, 8))
    x[:, 0] = np.exp(x[:, 0] / 2)
    columns, signs = rng.integers(1, 8, anomalies), rng.choice([-1, 1], anomalies)
    x[np.arange(n, n + anomalies), columns] += signs * rng.uniform(1.5, 6, anomalies)
    return x, np.arange(n + anomalies) >= n


def deal(y: npt.NDArray[np.bool_], share: float, rng: np.random.Generator) -> dict[str, npt.NDArray[np.intp]] | None:
    """Indices of the fit, stopping and calibration rows with this share of anomalies, and of the others by kind."""
    normal, anomalous = rng.permutation(np.flatnonzero(~y)), rng.permutation(np.flatnonzero(y))
    sizes = {"fit": min(6000, len(normal) * 2 // 5), "stopping": min(1500, len(normal) // 10)}
    dealt = {}
    for name, size in (sizes | {"calibration": min(4000, len(normal) // 4)}).items():
        hidden = round(share * size / (1 - share))
        dealt[name] = rng.permutation(np.concatenate([normal[:size], anomalous[:hidden]]))
        normal, anomalous = normal[size:], anomalous[hidden:]
    dealt |= {"normal": normal[:TESTED], "anomalous": anomalous[:TESTED]}
    return dealt if len(anomalous) >= FEWEST_ANOMALIES else None


def score_table(
    x: Floats, y: npt.NDArray[np.bool_], score: ScoringParams, epochs: int, seeds: int
) -> Iterator[tuple[float, dict[str, Floats], npt.NDArray[np.bool_]]]:
    """For each share and seed: scores of each set, and which calibration rows are anomalies."""
    table = pa.table({f"x{n}": column for n, column in enumerate(x.T)})
    few = table.take(pa.array(np.random.default_rng(0).permutation(len(y))[:TESTED]))
    arrival = Arrival("fit", "1", datetime(2026, 1, 1, tzinfo=UTC), lambda: [few])
    drafted = draft_detector(FilesSource(kind="files", path="fit"), [arrival], Request())
    learn, typed = drafted.train, type_rows(table, drafted.contract)
    numbers = np.column_stack([typed[name].to_numpy() for name in learn.columns.numbers]).astype(float)
    params = ModelParams(networks=learn.networks, fit=learn.fit.model_copy(update={"epochs": epochs}), score=score)
    for share in SHARES:
        for seed in range(seeds):
            sets = deal(y, share, np.random.default_rng(seed))
            if sets is None:
                continue
            for name in ("fit", "stopping"):
                sets[name] = sets[name][~find_outliers(numbers[sets[name]], 0.01)]
            columns = describe_columns(learn.columns, typed.take(pa.array(sets["fit"])))
            records = {name: to_records(typed.take(pa.array(rows)), columns)[0] for name, rows in sets.items()}
            kinds = choose_kinds(columns, records["fit"], learn.encode)
            detector = fit_detector(kinds, records["fit"], records["stopping"], params, torch.device("cpu"))
            scores = {name: detector.score(records[name]) for name in ("calibration", "normal", "anomalous")}
            yield share, scores, y[sets["calibration"]]


def main() -> None:
    """Measure each table: figures are means over the seeds, first without trimming, then with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="*", help="NAME.npz with arrays X and y; one made table comes first")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--squared", action="store_true", help="score by squared errors instead of the distance")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("table, share: false alarms, in the stated interval, recall (clean: recall), calibration rows left out")
    for path in (None, *options.tables):
        x, y = make_table()
        if path:
            with np.load(path) as arrays:
                x, y = arrays["X"].astype(float), arrays["y"] == 1
        score = ResidualParams(kind="mean_squared") if options.squared else NeighboursParams()
        found: dict[float, list[list[float]]] = {}
        for share, scores, is_hidden in score_table(x, y, score, options.epochs, options.seeds):
            clean = fit_threshold(scores["calibration"][~is_hidden], POLICY)
            figures = [float((scores["anomalous"] > clean.value).mean())]
            for trims in (False, True):
                threshold = fit_threshold(scores["calibration"], POLICY, trims=trims)
                rate = float((scores["normal"] > threshold.value).mean())
                is_inside = threshold.interval_low <= rate <= threshold.interval_high
                recall = float((scores["anomalous"] > threshold.value).mean())
                figures += [rate, is_inside, recall, threshold.trimmed / len(is_hidden)]
            found.setdefault(share, []).append(figures)
        for share, rows in found.items():
            clean_recall, *rest = np.mean(rows, axis=0)
            shown = "; ".join("{:.2%}, {:.0%}, {:.3f}, {:.2%}".format(*rest[k : k + 4]) for k in (0, 4))
            print(f"{path.stem if path else 'made':16}{share:6.1%}: {shown} (clean: {clean_recall:.3f})", flush=True)


if __name__ == "__main__":
    main()
