"""The detector: columns, encoder, network, residual spreads and calibration in one object that is saved and loaded.

In: Records of N rows. Out: one float64 score per row, higher = more anomalous, with its rank, p-value, flag and the
share of each of the F columns. Fit on clean rows, calibrate on other clean rows, save, load, score every night.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from models.bundle import CALIBRATION, HEADER, TODO, WEIGHTS, dump_json, read_bundle, write_bundle
from models.calibration import Floats, Threshold, ThresholdParams, Tuning, fit_threshold, p_values, percentile_ranks
from models.encoders import Encoder, encode_records
from models.errors import BundleInvalid, NightjarError
from models.fitting import EpochLog, FitParams, Network, NetworkParams, build_network, fit_network, pin_threads
from models.params import Section
from models.records import Column, Records, iterate_blocks
from models.reducer import Reducer, ReducerHeader, describe_records
from models.scoring import ScoreParams, measure_spreads, score_residuals, share_scores, weigh_slots


class DetectorParams(Section):
    """What a detector learns with. threads is pinned around fitting and scoring, and saved with the detector."""

    network: NetworkParams
    fit: FitParams = FitParams()
    score: ScoreParams = ScoreParams()
    threads: int = Field(default=1, ge=1, le=1024)


class DetectorHeader(Section):
    """detector.json: everything about a saved detector that is not an array of numbers."""

    columns: tuple[Column, ...]
    network: NetworkParams
    score: ScoreParams
    threads: int = Field(ge=1, le=1024)
    threshold: Threshold | None
    lineage: dict[str, JsonValue]
    reducer: ReducerHeader | None = None  # left out where there is none


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sorted scores (n,) of clean rows that neither weights nor spreads have seen, and the threshold they gave."""

    scores: Floats
    threshold: Threshold


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why rows scored as they did: each column's share of the score and what the network expected, float64 (N, F).

    Shares are never negative and add up to the score. Expected values are in the units that `Encoder.decode` names.
    """

    contributions: Floats
    expected: Floats


@dataclass(frozen=True, eq=False)
class Detector:
    """A fitted detector. lineage is the caller's and kept verbatim: it is part of the content hash."""

    columns: tuple[Column, ...]
    encoder: Encoder
    network: Network
    network_params: NetworkParams
    score_params: ScoreParams
    spreads: Tensor
    threads: int
    calibration: Calibration | None = None
    lineage: Mapping[str, JsonValue] = field(default_factory=dict)
    reducer: Reducer | None = None

    def score(self, records: Records) -> Floats:
        """Score rows, float64 (N,). A row's score is the same bits whatever rows come with it."""
        scores = torch.empty(len(records), dtype=torch.float64)
        weights = self._weigh().float()
        self.encoder.check_widths(records)
        with pin_threads(self.threads), torch.inference_mode():
            for rows, block in iterate_blocks(records):
                encoded = self.encoder(block)
                residual = self.network(encoded).sub_(encoded)  # in place: fresh memory costs more than arithmetic
                scores[rows] = score_residuals(residual, weights, self.score_params)[: rows.stop - rows.start].double()
        return scores.numpy()

    def explain(self, records: Records) -> Explanation:
        """Share the scores of rows among the columns; slower than scoring, meant for flags."""
        scores = torch.from_numpy(self.score(records))
        contributions = torch.empty(len(records), len(self.columns), dtype=torch.float64)
        expected = torch.empty_like(contributions)
        weights, slots = self._weigh(), self.encoder.slots
        with pin_threads(self.threads), torch.inference_mode():
            for rows, block in iterate_blocks(records):
                n = rows.stop - rows.start
                encoded = self.encoder(block)
                rebuilt = self.network(encoded)
                residual = (rebuilt - encoded)[:n]
                contributions[rows] = share_scores(residual, weights, slots, scores[rows], self.score_params)
                expected[rows] = self.encoder.decode(rebuilt)[:n]
        return Explanation(contributions.numpy(), expected.numpy())

    def rank(self, scores: Floats) -> Floats:
        """Percentile ranks of scores (N,): share of calibration scores strictly below, 0 to 100."""
        return percentile_ranks(scores, self._calibrated().scores)

    def p_value(self, scores: Floats) -> Floats:
        """Conformal p-values of scores (N,), in (0, 1]; small is anomalous."""
        return p_values(scores, self._calibrated().scores)

    def describe(self, records: Records) -> Tensor:
        """What the reducer reads of rows, float32 (N, E); see `reducer.describe_records`."""
        scores, usual = self.score(records), float(np.median(self._calibrated().scores))
        contributions = self.explain(records).contributions
        encoded = encode_records(self.encoder, records)
        return describe_records(encoded, contributions, scores, self.rank(scores), max(usual, 1e-12))

    def reduce(self, records: Records) -> tuple[Floats, NDArray[np.bool_]]:
        """Second stage: each flag's probability of being a true anomaly (N,), and whether it is suppressed (N,).

        Without a reducer the probabilities are NaN and nothing is suppressed.
        """
        if self.reducer is None:
            return np.full(len(records), np.nan), np.zeros(len(records), dtype=bool)
        probabilities = self.reducer.predict(self.describe(records))
        return probabilities, self.reducer.suppresses(probabilities)

    @property
    def threshold(self) -> Threshold:
        """The threshold; a record is flagged when its score is strictly greater than `threshold.value`."""
        return self._calibrated().threshold

    def with_lineage(self, lineage: Mapping[str, JsonValue]) -> "Detector":
        """The same detector with another lineage."""
        return replace(self, lineage=lineage)

    def with_reducer(self, reducer: Reducer) -> "Detector":
        """The same detector with a second stage."""
        return replace(self, reducer=reducer)

    def save(self, folder: Path) -> str:
        """Write the bundle folder and return its content hash."""
        arrays = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        arrays |= {f"network.{name}": value for name, value in self.network.state_dict().items()}
        arrays |= {"spreads": self.spreads}
        if self.reducer:
            arrays |= {f"reducer.{name}": value for name, value in self.reducer.classifier.state_dict().items()}
        calibration = self.calibration
        scores = torch.from_numpy(calibration.scores if calibration else np.empty(0))
        header = DetectorHeader(
            columns=self.columns,
            network=self.network_params,
            score=self.score_params,
            threads=self.threads,
            threshold=calibration.threshold if calibration else None,
            lineage=dict(self.lineage),
            reducer=self.reducer.header if self.reducer else None,
        )
        contents = {
            HEADER: dump_json(header.model_dump(mode="json", exclude=None if self.reducer else {"reducer"})),
            WEIGHTS: dump_tensors(arrays),
            CALIBRATION: dump_tensors({"scores": scores}),
        }
        return write_bundle(folder, contents)

    @classmethod
    def load(cls, folder: Path) -> "Detector":
        """Read a bundle folder after checking every byte; raises BundleInvalid."""
        contents = read_bundle(folder)
        try:
            header = DetectorHeader.model_validate_json(contents[HEADER])
            arrays, scores = load_tensors(contents[WEIGHTS]), load_tensors(contents[CALIBRATION])["scores"]
            encoder = Encoder(header.columns)
            encoder.load_state_dict(_take(arrays, "encoder."))
            network = build_network(header.network, encoder.width, seed=0)
            network.load_state_dict(_take(arrays, "network."))
            network.eval()
            spreads = arrays["spreads"]
            reducer = Reducer.build(header.reducer, _take(arrays, "reducer.")) if header.reducer else None
        except (ValidationError, SafetensorError, RuntimeError, KeyError) as error:
            raise BundleInvalid(
                "The files of the bundle do not fit together.",
                where=str(folder),
                got=str(error),
                expected=f"{WEIGHTS} and {CALIBRATION} as {HEADER} describes them",
                todo=TODO,
            ) from error
        calibration = Calibration(scores.numpy(), header.threshold) if header.threshold else None
        return cls(
            columns=header.columns,
            encoder=encoder,
            network=network,
            network_params=header.network,
            score_params=header.score,
            spreads=spreads,
            threads=header.threads,
            calibration=calibration,
            lineage=header.lineage,
            reducer=reducer,
        )

    def _weigh(self) -> Tensor:
        return weigh_slots(self.score_params, self.encoder.slots, self.spreads)

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise NightjarError(
                "This detector is not calibrated.",
                got="no calibration scores",
                expected="a threshold and sorted scores of clean rows",
                todo="run calibrate_detector on clean rows that were not fitted on",
            )
        return self.calibration


def fit_detector(
    columns: Sequence[Column],
    fit: Records,
    stopping: Records,
    params: DetectorParams,
    device: torch.device,
    on_epoch: Callable[[EpochLog], None] | None = None,
) -> Detector:
    """Fit encoder and network on clean fit rows, stop and measure spreads on stopping rows; not calibrated yet."""
    with pin_threads(params.threads):
        encoder = Encoder(columns).fit(fit)
        network = build_network(params.network, encoder.width, params.fit.seed)
        rows = encode_records(encoder, stopping)  # (N, D)
        fit_network(network, encode_records(encoder, fit), rows, params.fit, device, on_epoch)
        network.cpu()
        with torch.inference_mode():
            residual = torch.cat([network(part) - part for part in torch.split(rows, 8192)])  # (N, D)
            spreads = measure_spreads(residual, encoder.slots, len(columns))
    return Detector(tuple(columns), encoder, network, params.network, params.score, spreads, params.threads)


def calibrate_detector(
    detector: Detector,
    records: Records,
    policy: ThresholdParams,
    tuning: tuple[Records, NDArray[np.bool_]] | None = None,
) -> Detector:
    """Make a new detector of the same weights, calibrated on clean records; tuning rows come with is-anomaly (m,).

    A reducer is dropped: it was learnt on the flags of another threshold.
    """
    scores = detector.score(records)
    labelled = Tuning(detector.score(tuning[0]), tuning[1]) if tuning else None
    threshold = fit_threshold(scores, policy, labelled)
    return replace(detector, calibration=Calibration(np.sort(scores), threshold), reducer=None)


def _take(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
