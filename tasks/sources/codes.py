"""A seeded generator of short codes such as "AB 21 XR GB132", as a parcel hub might scan them; the `codes` source.

In: seed, size, date. Out: a day's rows: event_time, code, and fault (well_formed, or what is wrong). A well-formed
code follows one of a few hidden formats; its words follow a power law over more than 750 words. Each day's rows come
from a generator keyed by (seed, date), so dates are independent.
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from pydantic import Field

from models.params import Section
from tasks.sources.arrival import Arrival

HALLS = [a + b for a in "ACEFGH" for b in "BDKT"]  # reversed, none is another hall
LANES = [str(number) for number in range(10, 70)]
GOODS = [a + b for a in "XYZ" for b in "RSTV"]
PLACES = [f"{country}{number}" for number in range(101, 281) for country in ("GB", "DE", "FR", "NL", "PL", "IT")]
WORDS = {"hall": HALLS, "lane": LANES, "goods": GOODS, "place": PLACES}  # 1,176 words
# Format: its share. A return begins with its place; a transfer goes from hall to hall.
FORMATS = {
    ("hall", "lane", "goods", "place"): 0.6,
    ("place", "goods", "hall"): 0.25,
    ("hall", "lane", "hall", "lane", "goods"): 0.15,
}
POWER = 1.5  # the n-th commonest word of a part is drawn in proportion to 1 / n ** POWER
WELL_FORMED = "well_formed"
FAULTS = ("order", "missing", "foreign", "swapped")


class CodesSource(Section):
    """The bundled generator of codes as a source."""

    kind: Literal["codes"]
    seed: int = Field(ge=0)
    rows_per_day: int = Field(ge=1, le=1_000_000)
    first_date: date  # the source has no earlier data
    malformed_fraction: float = Field(default=0.01, ge=0, le=0.5)


def list_arrivals(source: CodesSource, zone: ZoneInfo, first: date, last: date) -> Iterator[Arrival]:
    """The generated codes of some dates, one file per date, which arrives when the day is over."""
    version = hashlib.sha256(f"{source.model_dump_json()} {zone}".encode()).hexdigest()[:16]
    for offset in range((last - max(first, source.first_date)).days + 1):
        day = max(first, source.first_date) + timedelta(days=offset)
        over = datetime.combine(day + timedelta(days=1), time(), zone).astimezone(UTC)
        yield Arrival(f"codes-{day}", version, over, lambda d=day: iter([draw_day(source, zone, d)]))  # type: ignore[misc]


def draw_day(source: CodesSource, zone: ZoneInfo, day: date) -> pa.Table:
    """The rows of a local day, ordered by time."""
    rng = np.random.default_rng([source.seed, day.toordinal()])
    n = source.rows_per_day
    start, end = (datetime.combine(day + timedelta(days=k), time(), zone).timestamp() for k in (0, 1))
    times = np.sort(rng.uniform(start, end, n)) * 1_000_000
    formats = list(FORMATS)
    chosen = rng.choice(len(formats), n, p=list(FORMATS.values()))
    faults = np.where(rng.random(n) < source.malformed_fraction, rng.choice(FAULTS, n), WELL_FORMED)
    texts = []
    drawn = {part: iter(_draw_words(rng, words, 2 * n)) for part, words in WORDS.items()}
    for place, fault in zip(chosen, faults, strict=True):
        words = [next(drawn[part]) for part in formats[place]]
        texts.append(" ".join(words if fault == WELL_FORMED else spoil(rng, words, str(fault))))
    stamps = pa.array(times.astype(np.int64), pa.timestamp("us", tz="UTC"))
    return pa.table({"event_time": stamps, "code": texts, "fault": pa.array(faults.tolist())})


def _draw_words(rng: np.random.Generator, words: Sequence[str], n: int) -> list[str]:
    weights = np.arange(1, len(words) + 1) ** -POWER
    return [words[place] for place in rng.choice(len(words), n, p=weights / weights.sum())]


def spoil(rng: np.random.Generator, words: list[str], fault: str) -> list[str]:
    """The words of a well-formed code with one fault in them."""
    spoilt, place = list(words), int(rng.integers(len(words)))
    if fault == "missing":
        del spoilt[place]
    elif fault == "order":
        # Reversed or rotated, no format equals another.
        spoilt = spoilt[::-1] if place % 2 else spoilt[1:] + spoilt[:1]
    elif fault == "foreign":
        at = int(rng.integers(len(spoilt[place])))
        spoilt[place] = spoilt[place][:at] + str(rng.choice(list("#?äß_"))) + spoilt[place][at + 1 :]
    else:
        place = int(rng.choice([k for k, word in enumerate(words) if not word.isdigit()]))  # a lane stays a lane
        spoilt[place] = spoilt[place][1:] + spoilt[place][:1]
    return spoilt
