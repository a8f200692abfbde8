"""The hdfs detector on rolling chronological splits, compared with a simple rule: flag a count vector not seen before.

    python bench/hdfs.py --data sources/hdfs

The normal sessions in the first share of the log are split into fit, stopping and calibration rows as in params.yaml.
The test set is the normal sessions that follow and all anomalous ones; test windows do not overlap. The rule has no
score, only flags: above its own false-alarm rate its recall is constant, below it a random part of its flags is kept.
F1 scales the false alarms to the number of normal sessions in the full log. Published: 0.58 (plain autoencoder), 0.945
(DeepLog), 0.976 (LogAnomaly).
"""

import argparse
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from flows.config.params import load_detector
from models.calibration import Floats
from models.detector import ModelParams, calibrate_detector, fit_detector
from models.errors import TooFewRows
from models.params import QuantilePolicy
from models.records import Records
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.params import Fractions

DETECTOR = load_detector(Path(), "hdfs").detector
BUDGETS = (0.005, 0.01)  # false-alarm rates at which recall is measured
QUANTILES = (0.99, 0.995, 0.998)
FULL_ANOMALOUS, FULL_NORMAL = 16_838, 575_061 - 16_838


def read_sessions(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in lines]


def count_events(session: str) -> frozenset[tuple[str, int]]:
    return frozenset(Counter(session.split()).items())


def find_unseen(sessions: list[str], seen: list[str]) -> Floats:
    """The rule, (N,): 1 if no earlier session has the same event counts, else 0."""
    known = {count_events(session) for session in seen}
    return np.array([count_events(session) not in known for session in sessions], dtype=np.float64)


def recall_at(budget: float, normal: Floats, anomalous: Floats) -> float:
    """Recall with at most `budget` of the normal scores flagged; ties at the threshold are not flagged."""
    threshold = np.sort(normal)[::-1][int(budget * len(normal))]
    return float((anomalous > threshold).mean())


def rule_recall_at(budget: float, normal: Floats, anomalous: Floats) -> float:
    """Recall of the rule; over the budget, only the share of its flags that the budget allows."""
    return float(anomalous.mean() * min(1.0, budget / normal.mean()))


def auroc(normal: Floats, anomalous: Floats) -> float:
    is_anomalous = np.repeat([False, True], [len(normal), len(anomalous)])
    return float(roc_auc_score(is_anomalous, np.concatenate([normal, anomalous])))


def format_interval(hits: float, of: int) -> str:
    """A share with its exact 95 % interval (Clopper and Pearson 1934)."""
    interval = binomtest(round(hits), of).proportion_ci(method="exact")
    return f"{hits / of:.4%} ({interval.low:.4%} to {interval.high:.4%})"


def full_f1(recall: float, false_alarm_rate: float) -> float:
    found, false = recall * FULL_ANOMALOUS, false_alarm_rate * FULL_NORMAL
    return 2 * found / (found + false + FULL_ANOMALOUS)


def fit_and_score(history: list[str], seed: int, *tests: list[str]) -> tuple[list[Floats], dict[str, float], int, int]:
    """Scores of each test set, thresholds by name, and the numbers of fit and calibration sessions."""
    shares, params = DETECTOR.filter.splits, DETECTOR.train
    assert isinstance(shares, Fractions)
    learnt = np.array([shares.fit, shares.fit + shares.stopping]) / (shares.fit + shares.stopping + shares.calibration)
    fit, stopping = np.round(learnt * len(history)).astype(int)
    columns = describe_columns(params.columns, pa.table({"events": history[:fit]}))

    def read(sessions: list[str]) -> Records:
        return to_records(pa.table({"events": sessions}), columns)[0]

    own = params.fit.model_copy(update={"seed": seed})
    settings = ModelParams(networks=params.networks, fit=own, score=params.score)
    detector = fit_detector(columns, read(history[:fit]), read(history[fit:stopping]), settings, torch.device("cpu"))
    calibration = read(history[stopping:])
    thresholds = {"highest": float(detector.score(calibration).max())}
    for q in QUANTILES:
        try:
            thresholds[f"q {q}"] = calibrate_detector(detector, calibration, QuantilePolicy(q=q)).threshold.value
        except TooFewRows as error:
            print(error)
    return [detector.score(read(test)) for test in tests], thresholds, fit, len(calibration)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("sources/hdfs"), help="folder with hdfs_train.gz and hdfs_abnormal.gz"
    )
    parser.add_argument(
        "--history", type=float, nargs="+", default=[0.4, 0.6, 0.8], help="shares of the log to learn from"
    )
    parser.add_argument("--test", type=float, default=0.2, help="share of the log that follows, to test on")
    parser.add_argument("--seed", type=int, default=DETECTOR.train.fit.seed)
    options = parser.parse_args()
    sessions, bad = (read_sessions(options.data / f"hdfs_{name}.gz") for name in ("train", "abnormal"))
    rates: dict[str, list[tuple[float, float]]] = {}  # per method: AUROC, then recall at each budget, by split
    alarms: dict[str, list[tuple[int, int, float]]] = {}  # per threshold: false alarms, normal sessions, recall
    for share in options.history:
        now = round(share * len(sessions))
        history, following = sessions[:now], sessions[now : now + round(options.test * len(sessions))]
        scores, thresholds, fitted, calibrated = fit_and_score(history, options.seed, following, bad)
        print(f"\nfirst {share:.0%}: {fitted} fit, {calibrated} calibration, {len(following)} normal test sessions")
        methods = {"detector": (scores, recall_at)}
        for name, seen in (("rule, fit rows", history[:fitted]), ("rule, all history", history)):
            methods[name] = ([find_unseen(following, seen), find_unseen(bad, seen)], rule_recall_at)
        for name, ([normal, anomalous], measure_recall) in methods.items():
            found = (auroc(normal, anomalous), *(measure_recall(budget, normal, anomalous) for budget in BUDGETS))
            rates.setdefault(name, []).append(found)
            recall_texts = [
                f"at {b:.1%} {format_interval(r * len(bad), len(bad))}" for b, r in zip(BUDGETS, found[1:], strict=True)
            ]
            flagged = f", flags {normal.sum():.0f}" if name != "detector" else ""
            print(f"{name:18} AUROC {found[0]:.6f}, recall {', '.join(recall_texts)}{flagged}")
        for name, threshold in thresholds.items():
            false, recall = int((scores[0] > threshold).sum()), float((scores[1] > threshold).mean())
            alarms.setdefault(name, []).append((false, len(following), recall))
        for name, of in (("fit rows", history[:fitted]), ("all history", history)):
            false, recall = int(find_unseen(following, of).sum()), float(find_unseen(bad, of).mean())
            alarms.setdefault(f"rule, {name}", []).append((false, len(following), recall))

    print("\nmean over splits; intervals for one set of anomalous sessions, which all splits share")
    for name, found in rates.items():
        area, *recalls = np.mean(found, axis=0)
        recall_texts = [
            f"at {b:.1%} {format_interval(r * len(bad), len(bad))}" for b, r in zip(BUDGETS, recalls, strict=True)
        ]
        print(f"{name:18} AUROC {area:.6f}, recall {', '.join(recall_texts)}")
    print(
        f"\nF1 with {FULL_ANOMALOUS:,} anomalous and {FULL_NORMAL:,} normal sessions; thresholds from calibration rows"
    )
    for name, splits in alarms.items():
        false, normal = sum(f for f, _, _ in splits), sum(n for _, n, _ in splits)
        recall = float(np.mean([r for _, _, r in splits]))
        interval = binomtest(false, normal).proportion_ci(method="exact")
        low, high = full_f1(recall, interval.high), full_f1(recall, interval.low)
        by_split = "+".join(str(f) for f, _, _ in splits)
        print(
            f"{name:18} F1 {full_f1(recall, false / normal):.4f} ({low:.4f} to {high:.4f}), recall {recall:.4%}, "
            f"{by_split} false alarms in {normal} sessions"
        )


if __name__ == "__main__":
    main()
