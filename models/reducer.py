"""The second stage: a classifier fitted on analysts' verdicts on flags, which suppresses false positives.

In: features of a flag, float32 (N, E): encoded row, each column's share of the score, score, rank. Out: the
probability (N,) that the flag is a true anomaly; flags below the cut are suppressed. The cut is a tolerance limit: with
90 % confidence at most `max_recall_loss` of the true flags are below it (Wilks 1941, doi:10.1214/aoms/1177731788).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from models.autoencoder import Layers
from models.calibration import Floats, rows_for_loss
from models.errors import ReducerRefused, TooFewRows
from models.fitting import pin_arithmetic
from models.params import ForestReducerParams, NetworkReducerParams, ReducerLimits, ReducerParams, Section
from models.records import BLOCK

FOLDS = 5
CONFIDENCE = 0.9  # that the cut loses at most the allowed recall
MAX_DEVIATION = 8.0  # in standard deviations; larger deviations add no information
BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Reviewed records. inclusion is the probability (0, 1] of being selected for review; times are sortable."""

    features: Tensor  # float32 (N, E)
    is_anomaly: NDArray[np.bool_]  # (N,)
    is_flag: NDArray[np.bool_]  # (N,)
    inclusion: Floats  # (N,)
    times: NDArray[np.int64]  # (N,)

    def __len__(self) -> int:
        """N."""
        return len(self.is_anomaly)

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Verdicts":
        """Take rows by a bool mask (N,)."""
        taken = (self.is_anomaly[rows], self.is_flag[rows], self.inclusion[rows], self.times[rows])
        return Verdicts(self.features[torch.from_numpy(rows)], *taken)


@dataclass(frozen=True)
class Gain:
    """The gain on flags that neither classifier nor cut has seen; shares are weighted by 1 / inclusion.

    recall_kept: share of the flagged true anomalies that stay alerts. first_stage_recall: flagged share of all
    anomalies, from the sample below the threshold. alerts_share: share of the flags that stay alerts.
    """

    verdicts: int
    flags: int
    confirmed: int
    first_stage_recall: float
    precision_before: float
    precision_after: float
    recall_kept: float
    alerts_share: float


class NetworkClassifier(nn.Module):
    """Standardise and pass through the layers: (N, E) -> log-odds (N,)."""

    mean: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, params: NetworkReducerParams) -> None:
        super().__init__()
        self.stack = Layers((width, *params.hidden, 1), "silu")
        for name, value in {"mean": torch.zeros(width), "scale": torch.ones(width), "shift": torch.zeros(())}.items():
            self.register_buffer(name, value)

    def standardise(self, features: Tensor) -> Tensor:
        """Deviations from the mean in standard deviations, (N, E)."""
        return ((features - self.mean) / self.scale).clamp(-MAX_DEVIATION, MAX_DEVIATION)

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds of rows."""
        return self.judge(self.standardise(features)) + self.shift

    def judge(self, deviations: Tensor) -> Tensor:
        """Log-odds of standardised rows, without the shift."""
        logits: Tensor = self.stack(deviations)[:, 0]
        return logits


class ForestClassifier(nn.Module):
    """All trees as flat arrays of nodes (M,): (N, E) -> log-odds (N,). A leaf leads to itself."""

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    share: Tensor
    roots: Tensor
    depth: Tensor
    shift: Tensor

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        super().__init__()
        for name in self.__class__.__annotations__:
            self.register_buffer(name, arrays[name])

    def forward(self, features: Tensor) -> Tensor:
        """Log-odds of rows."""
        nodes = self.roots.expand(len(features), -1)  # (N, trees)
        for _ in range(int(self.depth)):
            goes_left = features.gather(1, self.feature[nodes]) <= self.threshold[nodes]
            nodes = torch.where(goes_left, self.left[nodes], self.right[nodes])
        return torch.logit(self.share[nodes].mean(dim=1), eps=1e-6) + self.shift


Classifier = NetworkClassifier | ForestClassifier


class ReducerHeader(Section):
    """Everything about a saved reducer that is not an array of numbers."""

    params: ReducerParams
    cut: float
    gain: Gain


@dataclass(frozen=True, eq=False)
class Reducer:
    """A fitted second stage: a flag is suppressed when its probability is strictly below the cut."""

    classifier: Classifier
    header: ReducerHeader

    def predict(self, features: Tensor) -> Floats:
        """Probability of a true anomaly, float64 (N,); a row's bits depend on that row alone."""
        return predict(self.classifier, features)

    def suppresses(self, probabilities: Floats) -> NDArray[np.bool_]:
        """Which flags with these probabilities (N,) are suppressed."""
        return probabilities < self.header.cut

    @classmethod
    def build(cls, header: ReducerHeader, arrays: dict[str, Tensor]) -> "Reducer":
        """Rebuild a saved reducer; raises KeyError or RuntimeError if the arrays do not match."""
        if isinstance(header.params, ForestReducerParams):
            return cls(ForestClassifier(arrays), header)
        network = NetworkClassifier(len(arrays["mean"]), header.params)
        network.load_state_dict(arrays)
        return cls(network.eval(), header)


def describe_records(encoded: Tensor, contributions: Floats, scores: Floats, ranks: Floats, unit: float) -> Tensor:
    """The features of a reducer, float32 (N, E = D + F + 2).

    encoded (N, D), contributions (N, F), scores (N,), ranks (N,) 0 to 100. Shares and scores span decades, so they
    become logarithms, in units of a typical score.
    """
    sizes = np.log1p(np.column_stack([contributions, scores]) / unit)
    return torch.cat([encoded, torch.from_numpy(np.column_stack([sizes, ranks / 100])).float()], dim=1)


def fit_reducer(verdicts: Verdicts, params: ReducerParams, limits: ReducerLimits) -> Reducer:
    """Fit on the reviewed flags; set the cut and measure the gain, both by folds over time.

    Raises TooFewRows, and ReducerRefused if held-out flags lose more recall than the limits allow.
    """
    reducer, _ = learn(verdicts, params, limits)
    check_loss(reducer.header.gain, limits)
    return reducer


def learn(verdicts: Verdicts, params: ReducerParams, limits: ReducerLimits) -> tuple[Reducer, NDArray[np.bool_]]:
    """Fit as `fit_reducer` does, whatever is lost; and which of the F reviewed flags stay alerts, held out, (F,).

    Rows below the threshold show how much the first stage misses; the classifier never gets one, and is better without
    them. Raises TooFewRows.
    """
    flags = verdicts[verdicts.is_flag]
    _check_enough(flags, limits)
    probabilities, folds = cross_validate(flags, params)
    cut = choose_cut(probabilities[flags.is_anomaly], limits.max_recall_loss)
    is_kept = np.ones(len(flags), dtype=bool)
    for fold in range(FOLDS):
        own = folds == fold
        # Each fold is judged by a cut that does not depend on it.
        is_kept[own] = probabilities[own] >= choose_cut(
            probabilities[~own & flags.is_anomaly], limits.max_recall_loss, may_be_zero=True
        )
    gain = measure_gain(verdicts, flags, is_kept)
    return Reducer(fit_classifier(flags, params), ReducerHeader(params=params, cut=cut, gain=gain)), is_kept


def check_loss(gain: Gain, limits: ReducerLimits) -> None:
    """Raise ReducerRefused if held-out flags lose more recall than the limits allow."""
    if 1 - gain.recall_kept > limits.max_recall_loss:
        raise ReducerRefused(
            "The reducer would lose too much recall.",
            got=f"{1 - gain.recall_kept:.1%} of {gain.confirmed} confirmed anomalies lost on held-out verdicts",
            expected=f"at most {limits.max_recall_loss:.1%}: {1 - gain.recall_kept - limits.max_recall_loss:.1%} less",
            todo="collect more verdicts, try the other kind of review.reducer, or raise limits.max_recall_loss",
        )


def cross_validate(flags: Verdicts, params: ReducerParams) -> tuple[Floats, NDArray[np.intp]]:
    """Probability of each flag from a classifier fitted without its fold, and its fold by time: both (N,)."""
    folds = np.empty(len(flags), dtype=np.intp)
    folds[np.argsort(flags.times, kind="stable")] = np.arange(len(flags)) * FOLDS // len(flags)
    probabilities = np.empty(len(flags))
    for fold in range(FOLDS):
        own = folds == fold
        probabilities[own] = predict(fit_classifier(flags[~own], params), flags.features[torch.from_numpy(own)])
    return probabilities, folds


def choose_cut(confirmed: Floats, max_loss: float, may_be_zero: bool = False) -> float:
    """The highest cut that, with 90 % confidence, has at most `max_loss` of the true anomalies below it.

    confirmed: out-of-fold probabilities (n,) of confirmed anomalies. The share below the k-th smallest follows
    Beta(k, n + 1 - k). Raises TooFewRows if n is too small for any cut, unless the cut may be zero.
    """
    from scipy.special import betaincinv  # type: ignore[import-untyped] # 0.3 s, not needed for scoring

    n = len(confirmed)
    k = 0
    while k < n and betaincinv(k + 1, n - k, CONFIDENCE) <= max_loss:
        k += 1
    if k == 0 and not may_be_zero:
        needed = rows_for_loss(max_loss, CONFIDENCE)
        raise TooFewRows(
            "There are too few confirmed anomalies to bound the loss of recall.",
            got=f"{n} confirmed among the flags",
            expected=f"at least {needed} for a loss of at most {max_loss:.1%}: {needed - n} are missing",
            todo="collect more verdicts, or raise review.limits.max_recall_loss",
        )
    return float(np.sort(confirmed)[k - 1]) if k else 0.0


def measure_gain(verdicts: Verdicts, flags: Verdicts, is_kept: NDArray[np.bool_]) -> Gain:
    """Precision and recall with and without suppressing; is_kept (number of flags,)."""
    weights, true = 1 / flags.inclusion, flags.is_anomaly
    found, kept = weights[true].sum(), weights[is_kept].sum()
    all_true = (1 / verdicts.inclusion)[verdicts.is_anomaly].sum()
    return Gain(
        verdicts=len(verdicts),
        flags=len(flags),
        confirmed=int(true.sum()),
        first_stage_recall=float(found / all_true),
        precision_before=float(found / weights.sum()),
        precision_after=float(weights[is_kept & true].sum() / kept) if kept else 0.0,
        recall_kept=float(weights[is_kept & true].sum() / found),
        alerts_share=float(kept / weights.sum()),
    )


def fit_classifier(rows: Verdicts, params: ReducerParams) -> Classifier:
    """Fit on rows of both classes, weighted by 1 / inclusion and balanced between the classes.

    The balancing is undone in the log-odds, so that the output is a probability.
    """
    weights = 1 / rows.inclusion
    of_true, of_false = weights[rows.is_anomaly].sum(), weights[~rows.is_anomaly].sum()
    if not (of_true and of_false):
        raise TooFewRows(
            "All verdicts of a fold are the same.",
            got=f"{int(rows.is_anomaly.sum())} anomalies among {len(rows)} flags",
            expected="confirmed and refuted flags in more than one fifth of the period",
            todo="collect verdicts on more nights",
        )
    balanced = weights * np.where(rows.is_anomaly, 0.5 / of_true, 0.5 / of_false) * len(rows)
    fit = _fit_forest if isinstance(params, ForestReducerParams) else _fit_network
    with pin_arithmetic(1):
        classifier: Classifier = fit(rows, balanced, params)  # type: ignore[arg-type]
    classifier.shift.fill_(float(np.log(of_true / of_false)))
    return classifier


def predict(classifier: Classifier, features: Tensor) -> Floats:
    """Probabilities of rows (N, E), float64 (N,), in blocks of one shape as in `records.iterate_blocks`."""
    probabilities = torch.empty(len(features), dtype=torch.float64)
    with pin_arithmetic(1), torch.inference_mode():
        for start in range(0, len(features), BLOCK):
            block = features[start : start + BLOCK]
            # Always a full block: the last few values of a partial one would be computed by other instructions.
            padded: Tensor = classifier(F.pad(block, (0, 0, 0, BLOCK - len(block)))).double().sigmoid()
            probabilities[start : start + len(block)] = padded[: len(block)]
    return probabilities.numpy()


def _check_enough(flags: Verdicts, limits: ReducerLimits) -> None:
    confirmed = int(flags.is_anomaly.sum())
    for got, needed, what in (
        (len(flags), limits.min_verdicts, "verdicts on flags"),
        (confirmed, limits.min_confirmed, "confirmed anomalies among the flags"),
    ):
        if got < needed:
            raise TooFewRows(
                f"There are too few {what} for a reducer.",
                got=f"{got} {what}",
                expected=f"at least {needed}: {needed - got} are missing",
                todo="collect more with nightjar review NAME; the limits are review.limits in params.yaml",
            )


def _fit_network(rows: Verdicts, weights: Floats, params: NetworkReducerParams) -> NetworkClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(params.seed)
        network = NetworkClassifier(rows.features.shape[1], params)
    spread, mean = torch.std_mean(rows.features, dim=0, correction=0)
    network.mean.copy_(mean)
    network.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))
    x, target, weight = network.standardise(rows.features), torch.from_numpy(rows.is_anomaly), torch.from_numpy(weights)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params.epochs)
    chance = Generator().manual_seed(params.seed)
    network.train()
    for _ in range(params.epochs):
        for picked in torch.split(torch.randperm(len(x), generator=chance), BATCH_SIZE):
            is_read = torch.rand(len(picked), x.shape[1], generator=chance) >= params.dropout
            logits = network.judge(x[picked] * is_read / (1 - params.dropout))
            losses = F.binary_cross_entropy_with_logits(logits, target[picked].float(), reduction="none")
            optimizer.zero_grad(set_to_none=True)
            (losses * weight[picked]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return network.eval()


def _fit_forest(rows: Verdicts, weights: Floats, params: ForestReducerParams) -> ForestClassifier:
    from sklearn.ensemble import RandomForestClassifier  # a second to import

    forest = RandomForestClassifier(params.trees, min_samples_leaf=params.min_leaf, random_state=params.seed)
    forest.fit(rows.features.numpy(), rows.is_anomaly, weights)
    trees = [tree.tree_ for tree in forest.estimators_]
    roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    columns: dict[str, list[NDArray[np.generic]]] = {n: [] for n in ("feature", "threshold", "left", "right", "share")}
    for root, tree in zip(roots, trees, strict=True):
        nodes, is_leaf = np.arange(tree.node_count), tree.children_left < 0
        columns["feature"].append(np.where(is_leaf, 0, tree.feature))
        columns["threshold"].append(tree.threshold)
        columns["left"].append(root + np.where(is_leaf, nodes, tree.children_left))
        columns["right"].append(root + np.where(is_leaf, nodes, tree.children_right))
        columns["share"].append(tree.value[:, 0, 1] / tree.value[:, 0].sum(axis=1))
    arrays = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in columns.items()}
    depth = torch.tensor(max(tree.max_depth for tree in trees))
    return ForestClassifier(arrays | {"roots": torch.from_numpy(roots), "depth": depth, "shift": torch.zeros(())})
