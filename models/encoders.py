"""Records in, one float32 row of D slots per record out, and back: the scaling statistics live here as buffers.

N rows, F columns, D slots in the order numeric, log-numeric (1 slot each), categorical (V + 1), date-time (4).
Numbers are standardised; heavy-tailed ones through log1p first, chosen by skewness without looking at labels.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from models.errors import NightjarError, TooFewRows
from models.params import Section
from models.records import MISSING_TIME, Column, Records, iterate_blocks

# In standard deviations. Far beyond any threshold, and its float32 square stays finite through a network.
MAX_DEVIATION = 1e6
HOUR = 3_600_000_000  # microseconds
PERIODS = (24 * HOUR, 7 * 24 * HOUR)  # a day, a week


class EncodeParams(Section):
    """How columns become numbers. log_skewness None: no column takes log1p unless it is declared so."""

    log_skewness: float | None = Field(default=3.0, gt=0)


def choose_kinds(columns: Sequence[Column], fit: Records, params: EncodeParams) -> tuple[Column, ...]:
    """Turn "numeric" into "log_numeric" where the fit rows are skewed beyond the limit and never negative."""
    if params.log_skewness is None:
        return tuple(columns)
    numbers = _blank_infinite(fit.numbers)
    mean, scale = _measure(numbers)
    skewness = ((numbers - mean) / scale).pow(3).nanmean(dim=0).nan_to_num(0.0)
    heavy = (skewness > params.log_skewness) & ~(numbers < 0).any(dim=0)
    taken = iter(heavy.tolist())
    chosen = []
    for column in columns:
        is_heavy = column.kind in ("numeric", "log_numeric") and next(taken)
        chosen.append(replace(column, kind="log_numeric") if is_heavy else column)
    return tuple(chosen)


class Encoder(nn.Module):
    """Turns the columns of records into slots; `slots` (D,) says which column each slot belongs to."""

    mean: Tensor
    scale: Tensor
    order: Tensor
    sizes: Tensor
    offsets: Tensor
    slots: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        if not columns:
            raise NightjarError("A detector needs at least one column to read.", got="0 columns", expected="1 or more")
        self.columns = tuple(columns)
        numeric = [i for i, c in enumerate(columns) if c.kind in ("numeric", "log_numeric")]
        order = sorted(range(len(numeric)), key=lambda k: columns[numeric[k]].kind == "log_numeric")
        categorical = [i for i, c in enumerate(columns) if c.kind == "categorical"]
        datetime = [i for i, c in enumerate(columns) if c.kind == "datetime"]
        self.widths = (len(numeric), len(categorical), len(datetime))
        sizes = [len(columns[i].vocabulary) for i in categorical]
        starts = [len(numeric) + sum(sizes[:i]) + i for i in range(len(sizes))]
        slots = [numeric[k] for k in order]
        slots += [i for i, size in zip(categorical, sizes, strict=True) for _ in range(size + 1)]
        slots += [i for i in datetime for _ in range(4)]

        self.register_buffer("mean", torch.zeros(len(numeric), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(numeric), dtype=torch.float64))
        # Derived from the columns, so not stored in a bundle.
        self.n_plain = sum(column.kind == "numeric" for column in columns)
        for name, values in {"order": order, "sizes": sizes, "offsets": starts, "slots": slots}.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    @property
    def width(self) -> int:
        """D, the number of slots."""
        return len(self.slots)

    def fit(self, records: Records) -> "Encoder":
        """Measure mean and spread of the numeric columns; missing and infinite values are left out."""
        if len(records) == 0:
            raise TooFewRows("There are no rows to fit the encoder on.", got="0 rows", expected="at least 1 row")
        self.check_widths(records)
        with torch.no_grad():
            mean, scale = _measure(_blank_infinite(self._compress_tails(records.numbers).T))
            self.mean.copy_(mean)
            self.scale.copy_(scale)
        return self

    def forward(self, records: Records) -> Tensor:
        """Encode records as float32 (N, D); every slot is finite whatever comes in.

        The result is a view of (D, N): slot by slot is how the arithmetic here and in `Stack` runs fastest.
        """
        encoded = torch.zeros(self.width, len(records))  # (D, N)
        n_numeric, n_categorical, n_datetime = self.widths
        if n_numeric:
            deviations = (
                self._compress_tails(records.numbers).sub_(self.mean[:, None]).div_(self.scale[:, None])
            )  # (Fn, N)
            # A missing value reads as the mean of the fit rows.
            encoded[:n_numeric] = deviations.clamp_(-MAX_DEVIATION, MAX_DEVIATION).nan_to_num_(0.0)
        if n_categorical:
            sizes = self.sizes[:, None]
            known = torch.where(records.codes.T < 0, sizes, records.codes.T).minimum(sizes)  # (Fc, N)
            encoded.scatter_(0, known.add_(self.offsets[:, None]), 1.0)
        if n_datetime:
            _place_on_clocks(records.times.T, encoded[-4 * n_datetime :].view(n_datetime, 4, -1))
        return encoded.T  # (N, D)

    def decode(self, encoded: Tensor) -> Tensor:
        """Read slots (N, D) back as one float64 value per column (N, F), in the column's own units.

        Numbers undo their scaling; a category is the code of its largest slot; a date-time is an hour of the day.
        """
        values = encoded.new_zeros(len(encoded), len(self.columns), dtype=torch.float64)  # (N, F)
        n_numeric = self.widths[0]
        numbers = encoded[:, :n_numeric].double() * self.scale + self.mean
        logs = numbers[:, self.n_plain :]
        logs.copy_(logs.abs().expm1().copysign(logs))
        values[:, self.slots[:n_numeric]] = numbers
        for i, column in enumerate(self.columns):
            own = encoded[:, self.slots == i].double()  # (N, slots of the column)
            if column.kind == "categorical":
                values[:, i] = own.argmax(dim=1).double()
            elif column.kind == "datetime":
                values[:, i] = (torch.atan2(own[:, 0], own[:, 1]) / (2 * math.pi)).remainder(1.0) * 24
        return values

    def _compress_tails(self, numbers: Tensor) -> Tensor:
        """Copy numbers as (Fn, N) in slot order; log-numeric ones as log1p, mirrored at 0 so that none becomes NaN."""
        ordered = numbers.T.index_select(0, self.order)  # (Fn, N)
        heavy = ordered[self.n_plain :]
        heavy.copy_(heavy.abs().log1p_().copysign_(heavy))
        return ordered

    def check_widths(self, records: Records) -> None:
        """Raise NightjarError where the records hold other numbers of columns."""
        got = (records.numbers.shape[1], records.codes.shape[1], records.times.shape[1])
        if got != self.widths:
            raise NightjarError(
                "The records do not have the detector's columns.",
                got=f"{got} numeric, categorical and date-time columns",
                expected=f"{self.widths}: {', '.join(column.name for column in self.columns)}",
                todo="build the records from detector.columns, in that order",
            )


def encode_records(encoder: Encoder, records: Records) -> Tensor:
    """Encode all rows at once in memory, float32 (N, D), with the same blocks that scoring uses."""
    encoder.check_widths(records)
    encoded = torch.empty(len(records), encoder.width)
    with torch.no_grad():
        for rows, block in iterate_blocks(records):
            encoded[rows] = encoder(block)[: rows.stop - rows.start]
    return encoded


def _place_on_clocks(times: Tensor, slots: Tensor) -> None:
    """Fill slots (Ft, 4, N): sine and cosine of the time of day, then of the week (UTC); the centre where missing."""
    is_there = (times != MISSING_TIME).float()  # (Ft, N)
    for i, period in enumerate(PERIODS):
        angle = times.remainder(period).double().mul_(2 * math.pi / period).float()  # (Ft, N)
        slots[:, 2 * i] = angle.sin().mul_(is_there)
        slots[:, 2 * i + 1] = angle.cos().mul_(is_there)


def _blank_infinite(numbers: Tensor) -> Tensor:
    return torch.where(numbers.isfinite(), numbers, torch.nan)


def _measure(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column without its NaN; (0, 1) where empty, scale 1 where constant."""
    # Dividing by the largest value first keeps sums and squares of any float64 from overflowing.
    largest = numbers.abs().nan_to_num(0.0).amax(dim=0)
    largest = torch.where(largest > 0, largest, 1.0)
    shrunk = numbers / largest
    mean = shrunk.nanmean(dim=0)
    scale = (shrunk - mean).square().nanmean(dim=0).sqrt() * largest
    # The rounded mean of a constant column would leave it a tiny false spread.
    lowest, highest = numbers.nan_to_num(torch.inf).amin(dim=0), numbers.nan_to_num(-torch.inf).amax(dim=0)
    is_constant = (lowest >= highest) | (scale == 0)
    mean = torch.where(lowest == highest, lowest, mean * largest)
    return mean.nan_to_num(0.0), torch.where(is_constant, 1.0, scale)
