"""Plots of a detector's results as PNG files, which open anywhere and which DVC compares side by side.

N test rows with scores float64 (N,), higher = more anomalous, and the truth bool (N,). Blue is normal, red anomalous.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from models.detector import Detector, rebuild
from models.encoders import encode_records
from models.records import Records

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
NORMAL, ANOMALOUS, LINE = "#3b6fb6", "#c8402f", "#222222"
SHOWN_POINTS = 4000  # in a scatter plot, sampled evenly from the rows


def draw_all(
    folder: Path, detector: Detector, records: Records, scores: Floats, is_anomaly: Flags, curve: pd.DataFrame
) -> None:
    """Draw all pictures that these rows allow into a folder; none shows a record itself, which draw_images does."""
    folder.mkdir(parents=True, exist_ok=True)
    threshold = detector.threshold.value
    draw_scores(folder / "scores.png", scores, is_anomaly, threshold)
    if is_anomaly.any():
        draw_thresholds(folder / "thresholds.png", curve, threshold)
        draw_ranking(folder / "ranking.png", scores, is_anomaly)
        draw_confusion(folder / "confusion.png", scores > threshold, is_anomaly)
    draw_latent(folder / "latent.png", detector.encode(records), scores, is_anomaly, threshold)


def draw_losses(path: Path, epochs: pd.DataFrame) -> None:
    """The losses of fit and stopping rows by epoch, and the epoch whose weights were kept; a panel for each network."""
    if epochs.empty:
        return
    own = [found for _, found in epochs.groupby("network")]
    figure, panels = _figure(len(own))
    for number, (axes, found) in enumerate(zip(panels, own, strict=True), start=1):
        for name, colour in (("fit", NORMAL), ("stopping", ANOMALOUS)):
            axes.plot(found["epoch"], found[f"{name}_loss"], color=colour, marker=".", label=f"{name} rows")
        best = found.loc[found["is_best"], "epoch"].max()
        axes.axvline(best, color=LINE, linestyle="--", label=f"kept: epoch {best}")
        axes.set(yscale="log", xlabel="epoch", title="Loss" if len(own) == 1 else f"Loss of network {number}")
        axes.legend(loc="upper right")
    figure.savefig(path)


def draw_scores(path: Path, scores: Floats, is_anomaly: Flags, threshold: float) -> None:
    """Histogram of the scores of normal and of anomalous rows, with the threshold."""
    figure, [axes] = _figure(1)
    shown = np.maximum(scores, np.quantile(scores, 0.001) if len(scores) else 0)
    shown = np.maximum(shown, 1e-12)  # the axis is logarithmic
    bins = np.geomspace(shown.min(), shown.max() * 1.001, 80)
    for mask, colour, name in ((~is_anomaly, NORMAL, "normal"), (is_anomaly, ANOMALOUS, "anomalous")):
        if mask.any():
            share = np.full(int(mask.sum()), 100 / mask.sum())
            shape = {"histtype": "stepfilled", "color": colour, "alpha": 0.6}  # one outline, not a shape for each bin
            axes.hist(shown[mask], bins, weights=share, label=f"{name} ({mask.sum():,})", **shape)
    axes.axvline(threshold, color=LINE, linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xscale="log", xlabel="score", ylabel="% of its rows", title="Scores of the test rows")
    axes.legend(loc="upper left")  # Matplotlib takes long to find the best place
    figure.savefig(path)


def draw_thresholds(path: Path, curve: pd.DataFrame, threshold: float) -> None:
    """Precision, recall and F1 against the threshold; curve comes from `measures.trace_thresholds`."""
    figure, [axes] = _figure(1)
    for name, colour in (("precision", NORMAL), ("recall", ANOMALOUS), ("f1", "#5a9e5a")):
        axes.plot(curve["threshold"], curve[name], color=colour, label=name)
    axes.axvline(threshold, color=LINE, linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xscale="log", xlabel="threshold", ylim=(0, 1.02), title="Metrics by threshold")
    axes.legend(loc="center left")
    figure.savefig(path)


def draw_ranking(path: Path, scores: Floats, is_anomaly: Flags) -> None:
    """The ROC curve and the precision-recall curve."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure, [left, right] = _figure(2)
    false_alarms, recall, _ = roc_curve(is_anomaly, scores)
    left.plot(false_alarms, recall, color=NORMAL)
    left.plot([0, 1], [0, 1], color=LINE, linestyle=":", linewidth=1)
    area = roc_auc_score(is_anomaly, scores) if not is_anomaly.all() else float("nan")
    left.set(xlabel="false-alarm rate", ylabel="recall", title=f"ROC, area {area:.4f}")
    precision, recall, _ = precision_recall_curve(is_anomaly, scores)
    right.plot(recall, precision, color=NORMAL)
    average = average_precision_score(is_anomaly, scores)
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title=f"Average precision {average:.4f}")
    figure.savefig(path)


def draw_confusion(path: Path, is_flagged: Flags, is_anomaly: Flags) -> None:
    """The confusion matrix: normal and anomalous rows, flagged or not, with each count's share of its line."""
    figure, [axes] = _figure(1)
    counts = np.array(
        [[(is_flagged[truth] == flag).sum() for flag in (False, True)] for truth in (~is_anomaly, is_anomaly)]
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (line, place), share in np.ndenumerate(shares):
        text = f"{counts[line, place]:,}\n{share:.2%}"
        axes.text(place, line, text, ha="center", va="center", color="white" if share > 0.5 else LINE)
    axes.set(xticks=[0, 1], xticklabels=["not flagged", "flagged"], yticks=[0, 1], yticklabels=["normal", "anomalous"])
    axes.set(title="Confusion matrix of the test rows")
    figure.savefig(path)


def draw_latent(path: Path, latent: Floats, scores: Floats, is_anomaly: Flags, threshold: float) -> None:
    """The latent space (N, Z) by its first two principal components, coloured by score, by flag and by truth."""
    figure, panels = _figure(3)
    chosen = np.unique(np.linspace(0, len(latent) - 1, SHOWN_POINTS).astype(int))
    places = project(latent)[chosen]
    colour = np.log10(np.maximum(scores[chosen], 1e-12))
    drawn = panels[0].scatter(*places.T, c=colour, s=4, cmap="viridis")
    figure.colorbar(drawn, ax=panels[0], label="log10 score")
    for axes, mask in zip(panels[1:], (scores[chosen] > threshold, is_anomaly[chosen]), strict=True):
        axes.scatter(*places[~mask].T, color=NORMAL, s=4, alpha=0.5)
        axes.scatter(*places[mask].T, color=ANOMALOUS, s=4, alpha=0.5)
    for axes, title in zip(panels, ("by score", "by flag", "by truth"), strict=True):
        axes.set(title=f"Latent space {title}", xlabel="1st principal component", ylabel="2nd")
    figure.savefig(path)


def draw_images(path: Path, detector: Detector, records: Records, scores: Floats, each: int = 6) -> None:
    """Typical and worst images of the first image column, if any: original, reconstruction, and difference."""
    if not any(column.kind == "image" for column in detector.columns):
        return
    order = np.argsort(scores, kind="stable")
    middle = max(0, len(order) // 2 - each // 2)
    chosen = np.concatenate([order[middle : middle + each], order[-each:]])
    titles = [f"{score:.2g}" for score in scores[chosen]]
    title = f"{min(each, len(scores))} typical test images, then the worst; their scores above"
    _draw_rebuilt(path, detector, records[torch.from_numpy(chosen)], titles, title)


def draw_planted(path: Path, detector: Detector, planted: Mapping[str, Records], each: int = 3) -> None:
    """The first images of each planted kind: original, reconstruction, and difference, with their scores."""
    first = {kind: records[:each] for kind, records in planted.items()}
    titles = [f"{kind} {score:.2g}" for kind, records in first.items() for score in detector.score(records)]
    joined = Records(*(torch.cat(parts) for parts in zip(*(one.parts for one in first.values()), strict=True)))
    threshold = detector.threshold.value
    _draw_rebuilt(path, detector, joined, titles, f"Drawn images; their scores above, threshold {threshold:.2g}")


def _draw_rebuilt(path: Path, detector: Detector, records: Records, titles: Sequence[str], title: str) -> None:
    """Images (n,) of the first image column above their reconstructions and the differences."""
    column = next(i for i, column in enumerate(detector.columns) if column.kind == "image")
    own = detector.encoder.slots == column
    encoded = encode_records(detector.encoder, records)
    rebuilt = rebuild(detector.networks, encoded)[0].T  # (n, D)
    shape = (-1, *detector.columns[column].shape)
    before, after = (rows[:, own].reshape(shape).numpy() for rows in (encoded, rebuilt))
    from matplotlib.figure import Figure

    figure = Figure(figsize=(len(titles), 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(3, len(titles), squeeze=False)
    for row, (label, images) in enumerate((("image", before), ("rebuilt", after), ("error", np.abs(after - before)))):
        for place, axes in enumerate(panels[row]):
            axes.imshow(images[place], cmap="magma" if row == 2 else "gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(titles[place].replace(" ", "\n"), fontsize=8)
        panels[row][0].set_ylabel(label)
    figure.suptitle(title)
    figure.savefig(path)


def project(latent: Floats) -> Floats:
    """The first two principal components (N, 2) of (N, Z); a missing second one is zero, and so is a single row."""
    from sklearn.decomposition import PCA

    if len(latent) < 2:
        return np.zeros((len(latent), 2))
    found = PCA(n_components=min(2, latent.shape[1]), random_state=0).fit_transform(latent)
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # half a second to import; without pyplot no display is needed

    width, height = 5.6 * panels, 4.0
    figure = Figure(figsize=(width, height), dpi=100)
    # Fixed margins, in inches: a layout that measures all labels takes as long again as drawing.
    edges = {"left": 0.7 / width, "right": 1 - 0.2 / width, "bottom": 0.55 / height, "top": 1 - 0.4 / height}
    return figure, list(figure.subplots(1, panels, squeeze=False, gridspec_kw={"wspace": 0.22, **edges})[0])
