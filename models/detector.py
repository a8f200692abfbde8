"""The detector: columns, encoder, networks, score and calibration in one object that can be saved and loaded.

In: Records of N rows. Out: one float64 score per row, higher = more anomalous, with its rank, p-value, flag and the
share of each of the U units of explanation. Fit on clean rows, calibrate on other clean rows, save, load, score every
night. D slots per row, M networks (one by default).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
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
from models.calibration import (
    Floats,
    Threshold,
    Tuning,
    bound_discoveries,
    discover,
    fit_threshold,
    p_values,
    percentile_ranks,
)
from models.columns import Column
from models.distributed import fit_distributed
from models.encoders import Encoder, Unit, encode_records
from models.errors import BundleInvalid, MemoryExhausted, NightjarError
from models.fitting import EpochLog, Network, Watched, build_network, fit_network, pin_arithmetic
from models.neighbours import NO_REFERENCES, References, draw_points, fit_references, score_neighbours, share_neighbours
from models.params import (
    FitParams,
    NeighboursParams,
    NetworkParams,
    Networks,
    ResidualParams,
    ScoringParams,
    Section,
    ThresholdParams,
)
from models.records import BLOCK, GPU_BLOCK, Records, iterate_blocks
from models.reducer import Reducer, ReducerHeader, describe_records
from models.scoring import measure_spreads, score_residuals, share_scores, weigh_slots
from models.segments import Names, Segments, fit_segments

ENCODED = 1 << 19  # slots of a piece that is encoded at once: 2 MB, which stay in a processor's cache


class ModelParams(Section):
    """How a detector is fitted. threads is pinned during fitting and scoring, and saved with the detector."""

    networks: Networks
    fit: FitParams = FitParams()
    score: ScoringParams = ResidualParams()
    threads: int = Field(default=1, ge=1, le=1024)


class DetectorHeader(Section):
    """detector.json: everything about a saved detector that is not an array of numbers."""

    columns: tuple[Column, ...]
    networks: Networks
    score: ScoringParams
    threads: int = Field(ge=1, le=1024)
    threshold: Threshold | None
    lineage: dict[str, JsonValue]
    reducer: ReducerHeader | None = None  # omitted if there is none
    segments: Segments | None = Field(default=None, exclude_if=lambda given: given is None)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Sorted scores (n,) of clean rows used neither for weights nor for spreads, and the threshold from them."""

    scores: Floats
    threshold: Threshold
    segments: Segments | None = None  # whose thresholds apply in place of this one


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why rows got their scores: each unit's share of the score, its actual value and its expected value.

    All float64 (N, U), in the order of the units. Shares are never negative and add up to the score. Values are in the
    units of `Encoder.decode`. Expected is what the networks rebuilt or, for a neighbours score, the mean of the clean
    rows with which the record was compared; zero instead of a negative value that the column never has.
    """

    units: tuple[Unit, ...]
    contributions: Floats
    actual: Floats
    expected: Floats


@dataclass(frozen=True, eq=False)
class Detector:
    """A fitted detector. lineage comes from the caller and is kept verbatim; it is part of the content hash."""

    columns: tuple[Column, ...]
    encoder: Encoder
    networks: tuple[Network, ...]
    network_params: tuple[NetworkParams, ...]
    score_params: ScoringParams
    spreads: Tensor
    threads: int
    references: References = NO_REFERENCES
    calibration: Calibration | None = None
    lineage: Mapping[str, JsonValue] = field(default_factory=dict)
    reducer: Reducer | None = None
    block: int = BLOCK  # rows per pass; not saved, like the device
    # Columns without a negative value in the fit rows: none is expected of them either. Not saved: see judge.py.
    nonnegative: frozenset[str] = frozenset()

    def to(self, device: torch.device) -> "Detector":
        """The same detector on a device, with a suitable block size; the second stage, with few rows, stays on the CPU.

        Scores of different devices agree within 1e-5 of the score or, if larger, of the threshold, so flags can differ
        only that close to it.
        """
        if device.type == "cpu":
            return self
        references = References(self.references.points.to(device), self.references.spacing.to(device))
        return replace(
            self,
            encoder=deepcopy(self.encoder).to(device),
            networks=tuple(deepcopy(network).to(device) for network in self.networks),
            spreads=self.spreads.to(device),
            references=references,
            block=GPU_BLOCK // (8 if references.points.numel() else 1),  # each row is compared with each reference
        )

    def score(self, records: Records) -> Floats:
        """Score rows, float64 (N,). A row's score is the same to the bit whatever other rows are scored with it."""
        weights = self._weigh().float()
        self.encoder.check_widths(records)
        scores = [torch.empty(0, dtype=torch.float64, device=self.spreads.device)]
        together = max(1, ENCODED // (self.block * self.encoder.width))  # blocks, for fewer and longer operations
        with self._pinned():
            for _, piece in self._cut(records, together):
                for encoded in self.encoder(piece).split(self.block):
                    # In place: allocating memory takes longer than the arithmetic.
                    residual = rebuild(self.networks, encoded).sub_(encoded.T)  # (M, D, N)
                    if isinstance(self.score_params, NeighboursParams):
                        found = score_neighbours(join_points(encoded, residual), self.references, self.score_params)
                    else:
                        found = score_residuals(residual.flatten(0, 1).T, weights, self.score_params).double()
                    scores.append(found)
        return torch.cat(scores)[: len(records)].numpy(force=True)  # the only place that waits for a GPU

    def explain(self, records: Records) -> Explanation:
        """Split the scores of rows among the units; slower than scoring, meant for flags."""
        scores = torch.from_numpy(self.score(records)).to(self.spreads.device)
        contributions = scores.new_zeros(len(records), len(self.encoder.units))
        actual, expected = torch.empty_like(contributions), torch.empty_like(contributions)
        weights, units, width = self._weigh(), self.encoder.slot_units, self.encoder.width
        with self._pinned():
            for rows, block in self._cut(records):
                n = rows.stop - rows.start
                encoded = self.encoder(block)
                rebuilt = rebuild(self.networks, encoded)  # (M, D, N)
                residual = rebuilt - encoded.T
                actual[rows] = self.encoder.decode(encoded, block.entities)[:n]
                if isinstance(self.score_params, NeighboursParams):
                    points = join_points(encoded, residual)
                    shares, neighbours = share_neighbours(points, self.references, self.score_params)
                    contributions[rows].index_add_(1, units.repeat(1 + len(rebuilt)), shares[:n])
                    expected[rows] = self.encoder.decode(neighbours[:, :width], block.entities)[:n]
                else:
                    joined = residual.flatten(0, 1).T[:n]
                    repeated = units.repeat(len(rebuilt))
                    contributions[rows] = share_scores(joined, weights, repeated, scores[rows], self.score_params)
                    expected[rows] = self.encoder.decode(rebuilt.mean(dim=0).T, block.entities)[:n]
        for position, unit in enumerate(self.encoder.units):
            column = self.columns[unit.column]
            if column.name in self.nonnegative or column.kind in ("image", "sequence"):
                expected[:, position].clamp_(min=0)
        shown = (part.numpy(force=True) for part in (contributions, actual, expected))
        return Explanation(self.encoder.units, *shown)

    def encode(self, records: Records) -> Floats:
        """Rows in the first network's latent space, float64 (N, Z): bottleneck activations, or latent means."""
        return self.encode_all(records, 1)[0]

    def encode_all(self, records: Records, most: int | None = None) -> list[Floats]:
        """Rows in the latent space of each network, or of the first `most`: float64 (N, Z) each."""
        with self._pinned():
            encoded = encode_records(self.encoder, records, self.block)
            return [network.latent(encoded).double().numpy(force=True) for network in self.networks[:most]]

    @property
    def latent_widths(self) -> tuple[int, ...]:
        """The width Z of each network's latent space."""
        given = self.network_params
        return tuple(one.latent if one.kind == "variational" else min(one.layers) for one in given)

    def rank(self, scores: Floats) -> Floats:
        """Percentile ranks of scores (N,): share of calibration scores strictly below, 0 to 100."""
        return percentile_ranks(scores, self._calibrated().scores)

    def p_value(self, scores: Floats) -> Floats:
        """Conformal p-values of scores (N,), in (0, 1]; small is anomalous."""
        return p_values(scores, self._calibrated().scores)

    def describe(self, records: Records) -> Tensor:
        """The reducer's features of rows, float32 (N, E); see `reducer.describe_records`."""
        scores, usual = self.score(records), float(np.median(self._calibrated().scores))
        contributions = self.explain(records).contributions
        encoded = encode_records(self.encoder, records, self.block).cpu()
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
        """The threshold; a record is flagged when its score is strictly greater than `threshold.value`.

        With a `discovery_rate`, this holds for a record judged alone; for a whole night, see `find_threshold`.
        """
        return self._calibrated().threshold

    @property
    def discovery_rate(self) -> float | None:
        """See `Threshold.discovery_rate`."""
        return self.threshold.discovery_rate

    @property
    def least_threshold(self) -> float:
        """The lowest threshold that a night may get."""
        if self.discovery_rate is None:
            return self.threshold.value
        return bound_discoveries(self._calibrated().scores, self.discovery_rate)

    def find_threshold(self, slices: Iterable[Floats]) -> tuple[float, int]:
        """The threshold of a night, from the scores of all its rows in slices, and how many of them are above it."""
        least, above, rows = self.least_threshold, [np.empty(0)], 0
        for scores in slices:
            above.append(scores[scores > least])
            rows += len(scores)
        found, threshold = np.concatenate(above), self.threshold.value
        if self.discovery_rate is not None:
            threshold = discover(self._calibrated().scores, found, rows, self.discovery_rate)
        return threshold, int((found > threshold).sum())

    @property
    def segments(self) -> Segments | None:
        """The segments that have thresholds of their own; None if all rows have `threshold`."""
        return self.calibration.segments if self.calibration else None

    def with_lineage(self, lineage: Mapping[str, JsonValue]) -> "Detector":
        """The same detector with another lineage."""
        return replace(self, lineage=lineage)

    def with_reducer(self, reducer: Reducer) -> "Detector":
        """The same detector with this second stage."""
        return replace(self, reducer=reducer)

    def save(self, folder: Path) -> str:
        """Write the bundle folder and return its content hash."""
        arrays = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        for i, network in enumerate(self.networks):
            arrays |= {f"{_prefix(i)}{name}": value for name, value in network.state_dict().items()}
        arrays |= {"spreads": self.spreads}
        if isinstance(self.score_params, NeighboursParams):
            arrays |= {"references.points": self.references.points, "references.spacing": self.references.spacing}
        if self.reducer:
            arrays |= {f"reducer.{name}": value for name, value in self.reducer.classifier.state_dict().items()}
        calibration = self.calibration
        scores = torch.from_numpy(calibration.scores if calibration else np.empty(0))
        header = DetectorHeader(
            columns=self.columns,
            networks=self.network_params,
            score=self.score_params,
            threads=self.threads,
            threshold=calibration.threshold if calibration else None,
            lineage=dict(self.lineage),
            reducer=self.reducer.header if self.reducer else None,
            segments=self.segments,
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
            if encoder.scales is not None:
                encoder.scales.make_room(len(arrays["encoder.scales.hashes"]))
            encoder.load_state_dict(_take(arrays, "encoder."))
            networks = tuple(build_network(network, encoder.width, seed=0) for network in header.networks)
            for i, network in enumerate(networks):
                network.load_state_dict(_take(arrays, _prefix(i)))
                network.eval()
            spreads, references = arrays["spreads"], NO_REFERENCES
            if isinstance(header.score, NeighboursParams):
                references = References(arrays["references.points"], arrays["references.spacing"])
            reducer = Reducer.build(header.reducer, _take(arrays, "reducer.")) if header.reducer else None
        except (ValidationError, SafetensorError, RuntimeError, KeyError, NightjarError) as error:
            raise BundleInvalid(
                "The files of the bundle do not match each other.",
                where=str(folder),
                got=str(error),
                expected=f"{WEIGHTS} and {CALIBRATION} as {HEADER} describes them",
                todo=TODO,
            ) from error
        calibration = Calibration(scores.numpy(), header.threshold, header.segments) if header.threshold else None
        return cls(
            columns=header.columns,
            encoder=encoder,
            networks=networks,
            network_params=header.networks,
            score_params=header.score,
            spreads=spreads,
            threads=header.threads,
            references=references,
            calibration=calibration,
            lineage=header.lineage,
            reducer=reducer,
        )

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        try:
            with pin_arithmetic(self.threads), torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            raise MemoryExhausted(
                "There is not enough memory on the GPU to score.",
                got=(str(error) or "out of memory").splitlines()[0],
                expected=f"memory for {self.block:,} rows and the networks' activations",
                todo="free the GPU, or set NIGHTJAR_DEVICE=cpu",
            ) from error

    def _cut(self, records: Records, together: int = 1) -> Iterator[tuple[slice, Records]]:
        return iterate_blocks(records, self.block, self.spreads.device, together)

    def _weigh(self) -> Tensor:
        """Weight of each slot of each network in a residual score, float64 (M D,); neighbours scores have none."""
        if isinstance(self.score_params, NeighboursParams):
            return torch.empty(0, dtype=torch.float64)
        learnt = _count_learnt(self.columns)
        columns = [self.encoder.slots + i * learnt for i in range(len(self.networks))]
        return weigh_slots(self.score_params, torch.cat(columns), self.spreads)

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise NightjarError(
                "The detector is not calibrated.",
                got="no calibration scores",
                expected="a threshold and sorted scores of clean rows",
                todo="run calibrate_detector on clean rows that were not used for fitting",
            )
        return self.calibration


def fit_detector(
    columns: Sequence[Column],
    fit: Records,
    stopping: Records,
    params: ModelParams,
    device: torch.device,
    on_epoch: Callable[[int, EpochLog], None] | None = None,
    devices: int = 1,
    tuning: tuple[Records, NDArray[np.bool_]] | None = None,
) -> Detector:
    """Fit encoder and networks on clean fit rows; stop and measure spreads on stopping rows; not calibrated yet.

    Each network has its own seed, counted up from fit.seed, and is fitted on `devices` devices together. on_epoch gets
    the network's number, from 0. tuning: labelled rows with is-anomaly (m,), of which each epoch's log shows precision
    and recall; nothing is learnt from them.
    """
    with pin_arithmetic(params.threads):
        encoder = Encoder(columns).fit(fit)
        fit_rows, stopping_rows = encode_records(encoder, fit), encode_records(encoder, stopping)  # (N, D)
        watched = None
        if tuning and len(tuning[0]):
            watched = Watched.sample(stopping_rows, encode_records(encoder, tuning[0]), torch.from_numpy(tuning[1]))
        networks, spreads = [], []
        for i, layout in enumerate(params.networks):
            own = params.fit.model_copy(update={"seed": params.fit.seed + i})
            network = build_network(layout, encoder.width, own.seed)
            report = partial(on_epoch, i) if on_epoch else None
            if devices > 1:
                fit_distributed(network, layout, fit_rows, stopping_rows, own, device, devices, report, watched)
            else:
                fit_network(network, fit_rows, stopping_rows, own, device, report, watched=watched)
            networks.append(network.cpu())
            with torch.inference_mode():
                residual = torch.cat([network(part) - part for part in torch.split(stopping_rows, 8192)])  # (N, D)
                spreads.append(measure_spreads(residual, encoder.slots, _count_learnt(columns)))
        references = NO_REFERENCES
        if isinstance(params.score, NeighboursParams):
            points = draw_points(
                fit_rows,
                stopping_rows,
                lambda rows: join_points(rows, rebuild(networks, rows) - rows.T),
                params.score,
                params.fit.seed,
            )
            references = fit_references(points, params.score)
    return Detector(
        columns=tuple(columns),
        encoder=encoder,
        networks=tuple(networks),
        network_params=params.networks,
        score_params=params.score,
        spreads=torch.cat(spreads),
        threads=params.threads,
        references=references,
    )


@torch.inference_mode()
def rebuild(networks: Sequence[Network], encoded: Tensor) -> Tensor:
    """Rebuild encoded rows (N, D) with each network, slot by slot: (M, D, N)."""
    return torch.stack([network(encoded).T for network in networks])


def join_points(encoded: Tensor, residual: Tensor) -> Tensor:
    """Concatenate rows (N, D) and the residuals of M networks (M, D, N) for the neighbours score: (N, D + M D)."""
    return torch.cat([encoded.T, residual.flatten(0, 1)]).T


def calibrate_detector(
    detector: Detector,
    records: Records,
    policy: ThresholdParams,
    tuning: tuple[Records, NDArray[np.bool_]] | None = None,
    rows_per_night: float = math.nan,
    trims: bool = False,
    by: tuple[str, Names] | None = None,
) -> Detector:
    """A new detector with the same weights, calibrated on clean records; tuning rows have is-anomaly (m,).

    trims: see `fit_threshold`; scores that it leaves out do not count in ranks and p-values either. by: a column and
    the segment of each record (n,), for `fit_segments`. A reducer is dropped, because it was fitted on the flags of
    another threshold.
    """
    labelled = Tuning(detector.score(tuning[0]), tuning[1]) if tuning else None
    return calibrate_by_scores(detector, detector.score(records), policy, labelled, rows_per_night, trims, by)


def calibrate_by_scores(
    detector: Detector,
    scores: Floats,
    policy: ThresholdParams,
    tuning: Tuning | None = None,
    rows_per_night: float = math.nan,
    trims: bool = False,
    by: tuple[str, Names] | None = None,
) -> Detector:
    """See `calibrate_detector`: the same from the scores of clean records."""
    threshold = fit_threshold(scores, policy, tuning, rows_per_night, trims)
    segments = fit_segments(scores, *by, policy, rows_per_night, trims) if by else None
    calibration = Calibration(np.sort(scores)[: threshold.n], threshold, segments)
    return replace(detector, calibration=calibration, reducer=None)


def _count_learnt(columns: Sequence[Column]) -> int:
    """The number of columns with slots: all but keys."""
    return sum(column.kind != "key" for column in columns)


def _prefix(i: int) -> str:
    # The first network keeps the name from when there was only one, so that older bundles still load.
    return "network." if i == 0 else f"network_{i}."


def _take(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
