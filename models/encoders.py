"""Records in, one float32 row of D slots per record out, and back; the scaling statistics are buffers.

N rows, F columns, D slots in the order numeric, log_numeric (1 slot each), categorical (V + 1; V + 2 with a slot for
rare values, see `Column`), date-time (4), image (one per pixel), sequence (as categorical). Numbers are standardised,
heavy-tailed ones after log1p, chosen by skewness without using labels. A unit of explanation is a column, a patch of an
image's pixels, or a token of a sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.columns import MISSING_TIME, PADDING, RARE, UNSEEN, Column, Tokens
from models.entities import NO_ENTITY, EntityScales
from models.errors import NightjarError, TooFewRows
from models.params import EncodeParams
from models.records import BLOCK, Records, iterate_blocks

# In standard deviations: far above any threshold, and its float32 square stays finite through a network.
MAX_DEVIATION = 1e6
HOUR = 3_600_000_000  # microseconds
PERIODS = (24 * HOUR, 7 * 24 * HOUR)  # a day, a week
PATCH = 7  # approximate side of a patch in pixels


def choose_kinds(columns: Sequence[Column], fit: Records, params: EncodeParams) -> tuple[Column, ...]:
    """Change "numeric" to "log_numeric" where the fit rows are skewed beyond the limit and never negative."""
    if params.log_skewness is None:
        return tuple(columns)
    negative = (_blank_infinite(fit.numbers) < 0).any(dim=0)
    heavy = (measure_skewness(fit.numbers) > params.log_skewness) & ~negative
    taken = iter(heavy.tolist())
    chosen = []
    for column in columns:
        is_heavy = column.kind in ("numeric", "log_numeric") and next(taken)
        chosen.append(replace(column, kind="log_numeric") if is_heavy else column)
    return tuple(chosen)


def measure_skewness(numbers: Tensor) -> Tensor:
    """Third standardised moment (F,) of each column of (N, F), N > 0, without its NaN and infinities; 0 if constant."""
    finite = _blank_infinite(numbers)
    mean, scale = _measure(finite)
    return ((finite - mean) / scale).pow(3).nanmean(dim=0).nan_to_num(0.0)


@dataclass(frozen=True)
class Unit:
    """The smallest possible cause: a column (by its index), or a named part of one."""

    column: int
    part: str = ""


class Encoder(nn.Module):
    """Turns the columns of records into slots; `slots` (D,) is the column of each slot.

    `slot_units` (D,) is the unit of each slot; `units` are in the order of the columns.
    """

    mean: Tensor
    scale: Tensor
    order: Tensor
    sizes: Tensor
    offsets: Tensor
    slots: Tensor
    slot_units: Tensor
    scaled: Tensor
    minimum: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        if not columns:
            raise NightjarError("A detector needs at least one column to read.", got="0 columns", expected="1 or more")
        self.columns = tuple(columns)
        numeric = [i for i, c in enumerate(columns) if c.kind in ("numeric", "log_numeric")]
        order = sorted(range(len(numeric)), key=lambda k: columns[numeric[k]].kind == "log_numeric")
        categorical = [i for i, c in enumerate(columns) if c.kind == "categorical"]
        datetime = [i for i, c in enumerate(columns) if c.kind == "datetime"]
        pixels = [math.prod(c.shape) for c in columns if c.kind == "image"]
        self.sequences = [(c.unseen + 1, c.tokens) for c in columns if c.kind == "sequence"]
        lengths = [tokens.length for _, tokens in self.sequences]
        n_entities = int(any(column.is_entity for column in columns))
        self.widths = (len(numeric), len(categorical), len(datetime), sum(pixels), sum(lengths), n_entities)
        sizes = [columns[i].unseen for i in categorical]
        starts = [len(numeric) + sum(sizes[:i]) + i for i in range(len(sizes))]
        self.units = tuple(Unit(i, part) for i, column in enumerate(columns) for part in _name_parts(column))
        firsts = [next((k for k, unit in enumerate(self.units) if unit.column == i), -1) for i in range(len(columns))]
        in_order = [numeric[k] for k in order]
        by_kind = in_order + categorical + datetime
        by_kind += [i for kind in ("image", "sequence") for i, c in enumerate(columns) if c.kind == kind]
        local = {i: _place_parts(columns[i]) for i in by_kind}  # the part of each slot of a column
        slots = [i for i in by_kind for _ in local[i]]
        slot_units = [firsts[i] + part for i in by_kind for part in local[i]]

        self.register_buffer("mean", torch.zeros(len(numeric), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(numeric), dtype=torch.float64))
        # Derived from the columns, so not stored in a bundle.
        self.n_one_hot = sum(sizes) + len(sizes)
        self.n_plain = sum(column.kind == "numeric" for column in columns)
        scaled = [place for place, i in enumerate(in_order) if columns[i].per_entity]
        self.scales = EntityScales(len(scaled)) if scaled else None
        derived = {"order": order, "sizes": sizes, "offsets": starts, "slots": slots, "slot_units": slot_units}
        derived |= {"scaled": scaled, "minimum": [columns[in_order[place]].per_entity for place in scaled]}
        for name, values in derived.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    @property
    def width(self) -> int:
        """D, the number of slots."""
        return len(self.slots)

    def fit(self, records: Records) -> "Encoder":
        """Measure mean and spread of the numeric columns, without missing and infinite values."""
        if len(records) == 0:
            raise TooFewRows("There are no rows to fit the encoder on.", got="0 rows", expected="at least 1 row")
        self.check_widths(records)
        with torch.no_grad():
            numbers = self._compress_tails(records.numbers)
            if self.scales is not None:
                self.scales.fit(_blank_infinite(numbers[self.scaled]), records.entities[:, 0], self.minimum)
            mean, scale = _measure(_blank_infinite(self._scale_by_entity(numbers, records.entities).T))
            self.mean.copy_(mean)
            self.scale.copy_(scale)
        return self

    def forward(self, records: Records) -> Tensor:
        """Encode records as float32 (N, D); every slot is finite for any input.

        The result is a view of (D, N): the arithmetic here and in `Layers` is fastest slot by slot.
        """
        encoded = torch.zeros(self.width, len(records), device=records.numbers.device)  # (D, N)
        n_numeric, n_categorical, n_datetime, n_pixels, _, _ = self.widths
        if n_numeric:
            numbers = self._scale_by_entity(self._compress_tails(records.numbers), records.entities)  # (Fn, N)
            deviations = numbers.sub_(self.mean[:, None]).div_(self.scale[:, None])
            # A missing value is encoded as the mean of the fit rows.
            encoded[:n_numeric] = deviations.clamp_(-MAX_DEVIATION, MAX_DEVIATION).nan_to_num_(0.0)
        if n_categorical:
            sizes = self.sizes[:, None]
            known = torch.where(records.codes.T < 0, sizes, records.codes.T).minimum(sizes)  # (Fc, N)
            encoded.scatter_(0, known.add_(self.offsets[:, None]), 1.0)
        end = n_numeric + self.n_one_hot
        if n_datetime:
            _place_on_clocks(records.times.T, encoded[end : end + 4 * n_datetime].view(n_datetime, 4, -1))
            end += 4 * n_datetime
        if n_pixels:
            torch.div(records.pixels.T, 255, out=encoded[end : end + n_pixels])
            end += n_pixels
        start = 0
        for size, tokens in self.sequences:
            codes = records.tokens.T[start : start + tokens.length]  # (L, N)
            _count_tokens(codes, tokens, encoded[end : end + size])
            start, end = start + tokens.length, end + size
        return encoded.T  # (N, D)

    def decode(self, encoded: Tensor, entities: Tensor | None = None) -> Tensor:
        """Decode slots (N, D) to one float64 value per unit (N, U), in the column's own units.

        Numbers are rescaled; a category is the code of its largest slot; a date-time is an hour of the day; a patch is
        its mean pixel, 0 to 255; a token is how often it occurs (multi-hot: whether it occurs, 0 to 1). entities
        (N, Fe): those of the rows, whose scales numbers have; by default unknown ones.
        """
        values = encoded.new_zeros(len(encoded), len(self.units), dtype=torch.float64)  # (N, U)
        n_numeric = self.widths[0]
        numbers = encoded[:, :n_numeric].double() * self.scale + self.mean
        if self.scales is not None:
            whom = torch.full((len(encoded),), NO_ENTITY, device=encoded.device) if entities is None else entities[:, 0]
            numbers[:, self.scaled] = self.scales.restore(numbers[:, self.scaled].T, whom).T
        logs = numbers[:, self.n_plain :]
        logs.copy_(logs.abs().expm1().copysign(logs))
        most = torch.finfo(torch.float64).max  # an infinite input decodes to the largest number
        values[:, self.slot_units[:n_numeric]] = numbers.clamp(-most, most)
        for i, column in enumerate(self.columns):
            is_own = self.slots == i
            own, units = encoded[:, is_own].double(), self.slot_units[is_own]  # (N, slots of the column)
            if column.kind == "categorical":
                values[:, units[0]] = own.argmax(dim=1).double()
            elif column.kind == "datetime":
                values[:, units[0]] = (torch.atan2(own[:, 0], own[:, 1]) / (2 * math.pi)).remainder(1.0) * 24
            elif column.kind == "image":
                values.index_add_(1, units, own * 255 / units.bincount()[units])
            elif column.kind == "sequence":
                values[:, units] = own.expm1() if column.tokens.form == "counts" else own
        return values

    def _compress_tails(self, numbers: Tensor) -> Tensor:
        """Copy numbers as (Fn, N) in slot order; log_numeric ones as log1p, mirrored at 0 so that none becomes NaN."""
        ordered = numbers.T.index_select(0, self.order)  # (Fn, N)
        heavy = ordered[self.n_plain :]
        heavy.copy_(heavy.abs().log1p_().copysign_(heavy))
        return ordered

    def _scale_by_entity(self, numbers: Tensor, entities: Tensor) -> Tensor:
        """Numbers (Fn, N) in slot order, overwritten where a column is scaled for each entity (N, Fe)."""
        if self.scales is not None:
            numbers[self.scaled] = self.scales.scale(numbers[self.scaled], entities[:, 0])
        return numbers

    def check_widths(self, records: Records) -> None:
        """Raise NightjarError if the records have other numbers of columns."""
        if records.widths != self.widths:
            raise NightjarError(
                "The records do not have the detector's columns.",
                got=f"{records.widths} numeric, categorical and date-time columns, pixels, tokens and entities",
                expected=f"{self.widths}: {', '.join(column.name for column in self.columns)}",
                todo="build the records from detector.columns, in that order",
            )


def encode_records(encoder: Encoder, records: Records, size: int = BLOCK) -> Tensor:
    """Encode all rows in memory, float32 (N, D) on the encoder's device, with the same blocks as scoring."""
    encoder.check_widths(records)
    device = encoder.mean.device
    encoded = torch.empty(len(records), encoder.width, device=device)
    with torch.no_grad():
        for rows, block in iterate_blocks(records, size, device):
            encoded[rows] = encoder(block)[: rows.stop - rows.start]
    return encoded


def _cut(size: int) -> list[tuple[int, int]]:
    """Split a side of `size` pixels into nearly equal pieces; the first and last pixel of each."""
    pieces = max(1, round(size / PATCH))
    bounds = [size * k // pieces for k in range(pieces + 1)]
    return [(start, end - 1) for start, end in pairwise(bounds)]


def _name_parts(column: Column) -> list[str]:
    """The units of a column: the patches of an image, row by row; the tokens of a sequence; or the column itself.

    A key has none.
    """
    if column.kind == "key":
        return []
    if column.kind == "image":
        sides = [_cut(size) for size in column.shape]
        return [f"rows {a}-{b}, columns {c}-{d}" for a, b in sides[0] for c, d in sides[1]]
    if column.kind == "sequence":
        return [*column.vocabulary, *([RARE] if column.rare else []), UNSEEN]
    return [""]


def _place_parts(column: Column) -> list[int]:
    """The part to which each slot of a column belongs."""
    if column.kind == "image":
        down, across = ([k for k, (a, b) in enumerate(_cut(size)) for _ in range(a, b + 1)] for size in column.shape)
        return [k * (across[-1] + 1) + m for k in down for m in across]
    if column.kind == "sequence":
        return list(range(column.unseen + 1))
    return [0] * {"categorical": column.unseen + 1, "datetime": 4}.get(column.kind, 1)


def _count_tokens(codes: Tensor, tokens: Tokens, slots: Tensor) -> None:
    """Fill slots (S, N) from codes (L, N): 1 for each token that occurs, or the log1p of how often it does."""
    unseen = len(slots) - 1
    place = torch.where((codes < 0) | (codes > unseen), unseen, codes)
    slots.scatter_add_(0, place, (codes != PADDING).float())
    if tokens.form == "counts":
        slots.log1p_()
    else:
        slots.clamp_(max=1)


def _place_on_clocks(times: Tensor, slots: Tensor) -> None:
    """Fill slots (Ft, 4, N): sine and cosine of the time of day, then of the week (UTC); the centre if missing."""
    is_there = (times != MISSING_TIME).float()  # (Ft, N)
    for i, period in enumerate(PERIODS):
        angle = times.remainder(period).double().mul_(2 * math.pi / period).float()  # (Ft, N)
        slots[:, 2 * i] = angle.sin().mul_(is_there)
        slots[:, 2 * i + 1] = angle.cos().mul_(is_there)


def _blank_infinite(numbers: Tensor) -> Tensor:
    return torch.where(numbers.isfinite(), numbers, torch.nan)


def _measure(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column without its NaN; (0, 1) if empty, scale 1 if constant."""
    # Dividing by the largest value first prevents overflow of sums and squares of any float64.
    largest = numbers.abs().nan_to_num(0.0).amax(dim=0)
    largest = torch.where(largest > 0, largest, 1.0)
    shrunk = numbers / largest
    mean = shrunk.nanmean(dim=0)
    scale = (shrunk - mean).square().nanmean(dim=0).sqrt() * largest
    # The rounded mean of a constant column would give it a tiny false spread.
    lowest, highest = numbers.nan_to_num(torch.inf).amin(dim=0), numbers.nan_to_num(-torch.inf).amax(dim=0)
    is_constant = (lowest >= highest) | (scale == 0)
    mean = torch.where(lowest == highest, lowest, mean * largest)
    return mean.nan_to_num(0.0), torch.where(is_constant, 1.0, scale)
