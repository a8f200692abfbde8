"""A seeded simulator of card payments as a bank's feed would deliver them; the bundled `payments` source.

In: seed, size, date. Out: raw feed rows (N per slice), labels that are known days later, and the planted truth.
Cards and the terminals they use are split into blocks. Every draw has a generator keyed by (seed, purpose, date,
block), so dates are independent, and memory holds one block whatever the size of a day. Frauds are drawn separately
from honest payments, so a terminal's past reports can be computed without drawing past honest payments.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import IntEnum
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from models.params import Section
from tasks.sources.arrival import Arrival

KINDS = ("stolen_card", "compromised_terminal", "small_payment_burst", "account_takeover")
MIN_LABEL_DELAY_DAYS, MAX_LABEL_DELAY_DAYS = 2, 10
REPORT_DAYS, COMPROMISE_DAYS, TRIP_DAYS = 28, 14, 7
CYCLE_DAYS = 28  # from the second cycle on: a late file on its first day, unseen values two days later
UNSEEN_AFTER_DAYS, UNSEEN_SHARE_OF_DATES = 35, 0.2
LATE_FRACTION = 0.03
ROWS_PER_BLOCK, TERMINALS_PER_GROUP = 120_000, 1_000
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
OWNER_SPAN_US = 128 * DAY_US  # longer than any compared time span, so (owner, time) is one sortable integer

CHANNELS = ("chip", "contactless", "online", "app", "recurring")
CHIP, CONTACTLESS, ONLINE, _, RECURRING = range(5)
CONTACTLESS_LIMIT_CENTS = 5_000  # above it an honest terminal requires chip and PIN
TRAVELLING = 0.1  # share of cards that are on a trip in any week
DEVICE_KM = 3.0  # typical distance of a payer's device from home
AT_SEAT = 0.85  # share of online payments to the category's usual country, not to a shop in DE
CARD_MEAN = 74.0  # mean payment of a card with spending level 1

# Country: km from a typical home. People travel to the first six; the last two have only online shops.
COUNTRY_KM = {"DE": 330, "AT": 560, "FR": 800, "ES": 1700, "TR": 2500, "US": 7200, "IE": 1400, "LU": 250}
COUNTRIES, HOME_KM = tuple(COUNTRY_KM), np.array(list(COUNTRY_KM.values()), dtype=float)
TRIP_SHARES = (0.25, 0.2, 0.15, 0.18, 0.12, 0.1)

# Category: median amount, its log spread, usual local hour, its spread, usual km to shops, country of online shops.
CATEGORY_HABITS = {
    "groceries": (26.0, 0.40, 17.0, 2.0, 2.0, "DE"),
    "restaurant": (22.0, 0.30, 19.0, 1.5, 6.0, "DE"),
    "fuel": (58.0, 0.15, 12.0, 3.0, 9.0, "DE"),
    "transport": (3.6, 0.25, 8.0, 1.5, 4.0, "DE"),
    "leisure": (15.0, 0.30, 21.5, 1.2, 8.0, "DE"),
    "clothing": (60.0, 0.35, 15.0, 1.5, 12.0, "DE"),
    "electronics": (420.0, 0.35, 16.0, 2.0, 14.0, "LU"),
    "travel": (520.0, 0.35, 20.0, 1.5, 3.0, "DE"),
    "digital_goods": (4.5, 0.40, 21.0, 1.5, 3.0, "IE"),
    "subscription": (11.0, 0.30, 4.0, 0.7, 3.0, "US"),
}
CATEGORIES = tuple(CATEGORY_HABITS)
MEDIAN, SPREAD, HOUR, HOUR_SPREAD, SHOP_KM = np.array([habits[:5] for habits in CATEGORY_HABITS.values()]).T
SEAT = np.array([COUNTRIES.index(habits[5]) for habits in CATEGORY_HABITS.values()])
UNSEEN = {"category": ("crypto_assets", "drone_parts"), "country": ("MN", "PY")}


@dataclass(frozen=True)
class Habit:
    """One way of paying: an episode is `payments` (from, to) payments of one card within `minutes`."""

    share: float  # of the rows of a day
    payments: tuple[int, int]
    minutes: float
    categories: dict[str, float]
    channels: tuple[float, ...]  # probability of each; the amount then decides between chip and contactless
    hours: tuple[float, float] | None = None  # local hours in which an episode begins, if not its category's


IN_SHOP, ON_WEB, IN_APP, BILLED = (1, 0, 0, 0, 0), (0, 0, 0.85, 0.15, 0), (0, 0, 0.15, 0.85, 0), (0, 0, 0, 0, 1)
DAILY = {"groceries": 0.38, "restaurant": 0.2, "fuel": 0.12, "transport": 0.22, "leisure": 0.08}
TOURED = {"clothing": 0.4, "groceries": 0.25, "restaurant": 0.15, "transport": 0.2}
# Errands and baskets of a card on a trip.
AWAY = {"groceries": 0.15, "restaurant": 0.45, "fuel": 0.05, "transport": 0.25, "leisure": 0.1}

# What honest people do. Each habit is common enough (well above 1 %) that no single column makes it suspicious:
# travellers are far from home, errands are many payments in an hour, baskets are many times the card's mean, players
# pay small amounts by phone, and a night's billing is a small burst itself.
ERRAND = Habit(0.44, (1, 1), 1, DAILY, IN_SHOP)
TOUR = Habit(0.15, (4, 16), 55, TOURED, IN_SHOP, (10, 18))
BASKET = Habit(0.06, (1, 2), 40, {"electronics": 0.6, "clothing": 0.4}, IN_SHOP)
WEB = Habit(0.12, (1, 2), 30, {"electronics": 0.3, "travel": 0.35, "clothing": 0.35}, ON_WEB)
PLAY = Habit(0.13, (1, 3), 40, {"digital_goods": 1.0}, IN_APP)
BILLING = Habit(0.10, (1, 6), 10, {"subscription": 1.0}, BILLED)
HONEST = (ERRAND, TOUR, BASKET, WEB, PLAY, BILLING)
HONEST_KIND = -1

# What thieves do, in the order of KINDS. Each value alone is normal; the combination is not.
# stolen_card: a ring buys what resells well, on card readers registered far away: country and distance disagree.
# compromised_terminal: a manipulated ticket machine or pump replays skimmed cards without the PIN, for amounts above
#   what such a machine takes.
# small_payment_burst: a script tries a card's number with tiny online payments: many in an hour, yet little spent.
# account_takeover: a stranger in the holder's app buys gift cards and goods, at unusual hours and for unusual amounts.
FRAUD = (
    Habit(0.00125, (2, 4), 50, {"electronics": 0.3, "clothing": 0.4, "groceries": 0.3}, IN_SHOP),
    Habit(0.00125, (1, 1), 1, {"transport": 0.6, "fuel": 0.4}, IN_SHOP),
    Habit(0.00125, (6, 12), 40, {"digital_goods": 1.0}, ON_WEB, (8, 20)),
    Habit(0.00125, (1, 3), 50, {"digital_goods": 0.4, "clothing": 0.4, "electronics": 0.2}, IN_APP, (3, 13)),
)
READER_SEATS = [COUNTRIES.index(country) for country in ("ES", "US", "IE", "LU")]
COMPROMISED = KINDS.index("compromised_terminal")

# One element per payment. `at` is in UTC microseconds; category, country, channel and kind are codes.
TIMES_AND_SUMS = [("at", "i8"), ("card", "i8"), ("terminal", "i8"), ("cents", "i8"), ("km", "f8"), ("number", "i8")]
EVENT = np.dtype([*TIMES_AND_SUMS, ("category", "i2"), ("country", "i2"), ("channel", "i2"), ("kind", "i2")])
Events = npt.NDArray[np.void]  # of dtype EVENT
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Purpose = IntEnum("Purpose", "CARDS TRIPS HONEST FRAUD COMPROMISE LATE DIRT UNSEEN")  # of a generator


class PaymentsSource(Section):
    """The bundled simulator as a source."""

    kind: Literal["payments"]
    seed: int = Field(ge=0)
    rows_per_day: int = Field(ge=2_000, le=10_000_000)
    first_date: date  # the source has no earlier data

    @property
    def blocks(self) -> int:
        """Number of blocks into which cards and terminals are split."""
        return -(-self.rows_per_day // ROWS_PER_BLOCK)

    @property
    def rows_per_block(self) -> float:
        """Expected rows per block and day."""
        return self.rows_per_day / self.blocks

    @property
    def cards_per_block(self) -> int:
        """Number of cards per block."""
        return int(self.rows_per_block / 1.5)


@dataclass(frozen=True)
class PaymentsFile:
    """One file of the feed: the payments of a date, or the few that arrived late."""

    name: str
    batch_date: date
    arrives_at: datetime  # UTC

    @property
    def late(self) -> bool:
        """Whether the file has the rows that were missing from the date's first file."""
        return self.name.endswith("late")


def list_deliveries(source: PaymentsSource, time_zone: str, first: date, last: date) -> list[PaymentsFile]:
    """Return the files of the dates first to last, arrived or not."""
    files = []
    for day in list_dates(source, first, last):
        due = datetime.combine(day + timedelta(days=1), time(2), ZoneInfo(time_zone))
        files.append(PaymentsFile(f"payments-{day}", day, due.astimezone(UTC)))
        if is_late_date(source, day):
            files.append(PaymentsFile(f"payments-{day}-late", day, (due + timedelta(days=2)).astimezone(UTC)))
    return files


def list_arrivals(source: PaymentsSource, zone: str, first: date, last: date) -> Iterator[Arrival]:
    """The simulator's files of some dates."""
    version = hashlib.sha256(f"{source.model_dump_json()} {zone}".encode()).hexdigest()[:16]
    for file in list_deliveries(source, zone, first, last):
        read = lambda f=file: map(_to_arrow, read_file(source, zone, f))  # noqa: E731
        yield Arrival(file.name, version, file.arrives_at, read)


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def read_file(source: PaymentsSource, time_zone: str, file: PaymentsFile) -> Iterator[pd.DataFrame]:
    """Yield a file's raw rows, one slice per block, each ordered by time with duplicate rows last.

    Aggregates look back from the payment and include it. Only first files have bad rows, late files never do.
    """
    day = file.batch_date
    unseen = draw_unseen(source, day)
    for block in range(source.blocks):
        events = draw_day(source, time_zone, day, block)
        events = events[np.argsort(events["at"], kind="stable")]
        frame = build_frame(source, time_zone, day, block, events)
        if is_late_date(source, day):
            late = make_generator(source, Purpose.LATE, day, block).random(len(frame)) < LATE_FRACTION
            frame, events = frame[late == file.late].reset_index(drop=True), events[late == file.late]
        if not file.late:
            rng = make_generator(source, Purpose.DIRT, day, block)
            frame = plant_dirt(rng, frame, np.flatnonzero(events["kind"] == HONEST_KIND), unseen)
        if is_late_date(source, day - timedelta(days=2)):
            frame["wallet"] = np.where(frame["channel"] == "contactless", "phone", "none")
        yield frame


def read_reports(source: PaymentsSource, time_zone: str, first: date, last: date) -> Iterator[pd.DataFrame]:
    """Yield all reports about the payments of first to last: record_id, label (1: fraud), known_at."""
    for day in list_dates(source, first, last):
        for block in range(source.blocks):
            frauds, known_at = draw_frauds(source, time_zone, day, block)
            ids = name_payments(day, block, frauds["number"])
            yield pd.DataFrame({"record_id": ids, "label": 1, "known_at": to_utc(known_at)})


def read_truth(source: PaymentsSource, time_zone: str, batch_date: date) -> pd.DataFrame:
    """Return record_id and kind (one of KINDS) of a date's frauds; only for evaluation."""
    frames = [pd.DataFrame({"record_id": [], "kind": []}, dtype="str")]
    for day in list_dates(source, batch_date, batch_date):
        for block in range(source.blocks):
            frauds, _ = draw_frauds(source, time_zone, day, block)
            ids = name_payments(day, block, frauds["number"])
            frames.append(pd.DataFrame({"record_id": ids, "kind": to_text(KINDS, frauds["kind"])}))
    return pd.concat(frames, ignore_index=True)


def list_dates(source: PaymentsSource, first: date, last: date) -> list[date]:
    """Return the dates from first to last on which the source has data."""
    first = max(first, source.first_date)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def is_late_date(source: PaymentsSource, day: date) -> bool:
    """Whether some of the date's rows arrive in a second file."""
    age = (day - source.first_date).days
    return age >= CYCLE_DAYS and age % CYCLE_DAYS == 0


def make_generator(source: PaymentsSource, purpose: Purpose, period: date | int, block: int) -> np.random.Generator:
    """Return the generator of one purpose, period (a date, or the number of a longer one) and block."""
    number = period if isinstance(period, int) else period.toordinal()
    return np.random.default_rng([source.seed, purpose, number, block])


def bound_day(time_zone: str, day: date) -> tuple[int, int]:
    """Return the local day's first UTC microsecond and that of the next day."""
    starts = (datetime.combine(day + timedelta(days=n), time(), ZoneInfo(time_zone)) for n in (0, 1))
    first, end = (int(start.timestamp()) * 1_000_000 for start in starts)
    return first, end


def draw_day(source: PaymentsSource, time_zone: str, day: date, block: int) -> Events:
    """Return all payments of a local day, unordered."""
    frauds, _ = draw_frauds(source, time_zone, day, block)
    rng = make_generator(source, Purpose.HONEST, day, block)
    bounds, levels, trips = bound_day(time_zone, day), draw_levels(source, block), draw_trips(source, day, block)
    parts = [frauds]
    for habit in HONEST:
        payments = draw_episodes(rng, habit, source, bounds)
        if habit in (ERRAND, BASKET):
            away = trips[0][payments["card"]] >= 0
            payments["category"][away] = draw_categories(rng, AWAY, int(away.sum()))
        price_payments(rng, payments, levels)
        place_payments(rng, payments, trips, source.rows_per_block)
        payments["kind"] = HONEST_KIND
        parts.append(payments)
    events = np.concatenate(parts)
    # Frauds get the first numbers, so that labels do not depend on honest payments; name_payments scrambles them.
    events["number"] = np.arange(len(events))
    return events


@lru_cache(maxsize=128)  # a date's reports need 29 past days of the block, the next date's 28 of the same
def draw_frauds(source: PaymentsSource, time_zone: str, day: date, block: int) -> tuple[Events, Ints]:
    """Return a local day's frauds, unordered, and when each is reported (UTC microseconds). Both are read-only."""
    rng = make_generator(source, Purpose.FRAUD, day, block)
    bounds, levels = bound_day(time_zone, day), draw_levels(source, block)
    no_trips = np.full(len(levels), -1), np.zeros(len(levels))
    parts = [draw_episodes(rng, habit, source, bounds) for habit in FRAUD]
    for kind, frauds in enumerate(parts):
        frauds["kind"] = kind
        price_payments(rng, frauds, levels)
        place_payments(rng, frauds, no_trips, source.rows_per_block)

    stolen, compromised, burst, takeover = parts
    stolen["country"] = rng.choice(READER_SEATS, len(stolen))
    stolen["km"] = draw_between(rng, 250, 2800, len(stolen))
    pick_terminals(rng, stolen, source.rows_per_block)
    compromised["terminal"] = rng.choice(list_compromised(source, day, block), len(compromised))
    compromised["category"] = compromised["terminal"] // TERMINALS_PER_GROUP // 2 // len(COUNTRIES)
    compromised["cents"] = draw_between(rng, 70, 220, len(compromised)) * 100
    compromised["channel"] = CONTACTLESS
    burst["cents"] = draw_between(rng, 2, 6, len(burst)) * 100
    takeover["cents"] = draw_between(rng, 15, 250, len(takeover)) * 100
    takeover["km"] = draw_between(rng, 1, 2000, len(takeover))

    frauds = np.concatenate(parts)
    frauds["number"] = np.arange(len(frauds))
    delay_days = MIN_LABEL_DELAY_DAYS + (MAX_LABEL_DELAY_DAYS - MIN_LABEL_DELAY_DAYS) * rng.beta(1.5, 3, len(frauds))
    known_at = frauds["at"] + (delay_days * DAY_US).astype(np.int64)
    frauds.flags.writeable = known_at.flags.writeable = False
    return frauds, known_at


@lru_cache(maxsize=2)
def draw_levels(source: PaymentsSource, block: int) -> Floats:
    """Return each card's spending level; the median is 1."""
    return make_generator(source, Purpose.CARDS, 0, block).lognormal(0, 0.25, source.cards_per_block)


@lru_cache(maxsize=2)
def draw_trips(source: PaymentsSource, day: date, block: int) -> tuple[Ints, Floats]:
    """Return, per card, the country of its trip in the date's week (-1: at home) and the trip's km from home."""
    rng = make_generator(source, Purpose.TRIPS, day.toordinal() // TRIP_DAYS, block)
    country = rng.choice(len(TRIP_SHARES), source.cards_per_block, p=TRIP_SHARES)
    km = HOME_KM[country] * rng.lognormal(0, 0.1, len(country))
    return np.where(rng.random(len(country)) < TRAVELLING, country, -1), km


def list_compromised(source: PaymentsSource, day: date, block: int) -> Ints:
    """Return the block's terminals that are compromised in the date's fortnight; thieves prefer busy ones."""
    rng = make_generator(source, Purpose.COMPROMISE, day.toordinal() // COMPROMISE_DAYS, block)
    count = 2 + int(source.rows_per_block / 1000)
    category = draw_categories(rng, FRAUD[COMPROMISED].categories, count)
    place = rng.random(count) ** 2 * 0.3 * count_terminals(source.rows_per_block, near_home=True)
    return category * len(COUNTRIES) * 2 * TERMINALS_PER_GROUP + place.astype(np.int64)


def draw_episodes(rng: np.random.Generator, habit: Habit, source: PaymentsSource, bounds: tuple[int, int]) -> Events:
    """Return a habit's payments within the day's bounds: card, time, category and channel."""
    low, high = habit.payments
    # The number of episodes is randomly rounded, not drawn, so that even a small day gets its share of frauds.
    sizes = rng.integers(low, high + 1, int(habit.share * source.rows_per_block / ((low + high) / 2) + rng.random()))
    events = np.zeros(sizes.sum(), EVENT)
    cards = source.cards_per_block * rng.random(len(sizes)) ** 1.3  # some cards are used more than others
    events["card"] = np.repeat(cards.astype(np.int64), sizes)
    events["category"] = draw_categories(rng, habit.categories, len(events))
    events["channel"] = rng.choice(len(CHANNELS), len(events), p=habit.channels)

    leading = events["category"][np.cumsum(sizes) - sizes]
    hour = (HOUR[leading] + HOUR_SPREAD[leading] * rng.standard_normal(len(sizes))) % 24
    if habit.hours:
        hour = rng.uniform(*habit.hours, len(sizes))
    hour = np.minimum(hour, 24 - habit.minutes / 60)  # an episode ends on the day it began
    hour = np.repeat(hour, sizes) + rng.random(len(events)) * habit.minutes / 60
    first, end = bounds
    # A day of 23 or 25 hours is squeezed or stretched, so that all payments stay in it.
    events["at"] = np.minimum(first + (hour / 24 * (end - first)).astype(np.int64), end - 1)
    return events


def draw_categories(rng: np.random.Generator, shares: dict[str, float], count: int) -> Ints:
    """Draw category codes by their shares."""
    return rng.choice([CATEGORIES.index(name) for name in shares], count, p=list(shares.values()))


def draw_between(rng: np.random.Generator, low: float, high: float, count: int) -> Floats:
    """Draw log-uniform values."""
    return np.exp(rng.uniform(np.log(low), np.log(high), count))


def price_payments(rng: np.random.Generator, events: Events, levels: Floats) -> None:
    """Fill in amounts usual for category and card, and choose contactless or chip by the amount."""
    category = events["category"]
    amount = MEDIAN[category] * levels[events["card"]] * np.exp(SPREAD[category] * rng.standard_normal(len(events)))
    events["cents"] = np.maximum(np.rint(amount * 100), 1)
    tap = (events["channel"] == CHIP) & (events["cents"] <= CONTACTLESS_LIMIT_CENTS) & (rng.random(len(events)) < 0.9)
    events["channel"][tap] = CONTACTLESS


def place_payments(rng: np.random.Generator, events: Events, trips: tuple[Ints, Floats], rows_per_block: float) -> None:
    """Fill in the shop's country and terminal, and the km from home of the card (in shops) or of the payer's device."""
    in_shop = events["channel"] <= CONTACTLESS
    trip, trip_km = trips[0][events["card"]], trips[1][events["card"]]
    seat = np.where(rng.random(len(events)) < AT_SEAT, SEAT[events["category"]], 0)
    events["country"] = np.where(in_shop, np.maximum(trip, 0), seat)
    near_km = np.where(in_shop, SHOP_KM[events["category"]], DEVICE_KM) * rng.lognormal(0, 0.5, len(events))
    events["km"] = np.where(trip >= 0, trip_km * rng.lognormal(0, 0.03, len(events)), near_km)
    events["km"][events["channel"] == RECURRING] = 0  # no device is involved
    pick_terminals(rng, events, rows_per_block)


def pick_terminals(rng: np.random.Generator, events: Events, rows_per_block: float) -> None:
    """Fill in a terminal of the payment's category and country; busy terminals are more likely."""
    remote = (events["channel"] >= ONLINE).astype(np.int64)
    group = (events["category"].astype(np.int64) * len(COUNTRIES) + events["country"]) * 2 + remote
    near_home = (events["country"] == 0) & (remote == 0)
    counts = np.where(near_home, count_terminals(rows_per_block, True), count_terminals(rows_per_block, False))
    events["terminal"] = group * TERMINALS_PER_GROUP + (counts * rng.random(len(events)) ** 2).astype(np.int64)


def count_terminals(rows_per_block: float, near_home: bool) -> int:
    """Return the number of terminals of one category in one country; most are near the cards' homes."""
    return 2 + int(rows_per_block / (150 if near_home else 1500))


def build_frame(source: PaymentsSource, time_zone: str, day: date, block: int, events: Events) -> pd.DataFrame:
    """Return the feed's columns of a day's payments, in the same order."""
    # After a day of 23 hours, a window of 24 hours reaches into the day before that.
    reached = datetime.fromtimestamp(bound_day(time_zone, day)[0] / 1e6 - 86_400, ZoneInfo(time_zone)).date()
    past = [draw_day(source, time_zone, date_, block) for date_ in list_dates(source, reached, day - timedelta(days=1))]
    (payments_1h, cents_1h), (payments_24h, cents_24h) = sum_recent([*past, events], (HOUR_US, DAY_US))
    card_mean = CARD_MEAN * draw_levels(source, block)[events["card"]]
    return pd.DataFrame(
        {
            "payment_id": name_payments(day, block, events["number"]),
            "event_time": to_utc(events["at"]),
            "card_id": name_owners(f"C{block}-", events["card"]),
            "terminal_id": name_owners(f"T{block}-", events["terminal"]),
            "amount": events["cents"] / 100,
            "category": to_text(CATEGORIES, events["category"]),
            "country": to_text(COUNTRIES, events["country"]),
            "channel": to_text(CHANNELS, events["channel"]),
            "card_present": events["channel"] <= CONTACTLESS,
            "payments_1h": payments_1h,
            "spend_1h": cents_1h / 100,
            "payments_24h": payments_24h,
            "spend_24h": cents_24h / 100,
            "amount_to_mean": np.round(events["cents"] / 100 / card_mean, 4),
            "km_from_home": np.round(events["km"], 2),
            "terminal_reports_28d": count_reports(source, time_zone, day, block, events),
        }
    )


def sum_recent(days: list[Events], windows_us: tuple[int, ...]) -> list[tuple[Ints, Ints]]:
    """Return, per window, number and cents of the card's payments in (t - window, t], for the last day's payments."""
    card, at, cents = (np.concatenate([day[name] for day in days]) for name in ("card", "at", "cents"))
    key = card * OWNER_SPAN_US + (at - at.min())
    order = np.argsort(key)
    ordered, totals = key[order], np.concatenate([[0], np.cumsum(cents[order])])
    n_past = len(key) - len(days[-1])
    wanted = order[order >= n_past]  # searched in key order, which is several times faster
    ends = np.searchsorted(ordered, key[wanted], side="right")
    sums = []
    for window_us in windows_us:
        starts = np.searchsorted(ordered, key[wanted] - window_us, side="right")
        count, spent = np.empty_like(key[n_past:]), np.empty_like(key[n_past:])
        count[wanted - n_past], spent[wanted - n_past] = ends - starts, totals[ends] - totals[starts]
        sums.append((count, spent))
    return sums


def count_reports(source: PaymentsSource, time_zone: str, day: date, block: int, events: Events) -> Ints:
    """Return the frauds at each payment's terminal in (t - 28 days, t] that were reported by t."""
    past = list_dates(source, day - timedelta(days=REPORT_DAYS + 1), day)
    drawn = [draw_frauds(source, time_zone, date_, block) for date_ in past]
    frauds, known_at = np.concatenate([pair[0] for pair in drawn]), np.concatenate([pair[1] for pair in drawn])
    # Every fraud older than 28 days has been reported, so the window has all reported frauds minus the old ones.
    base = int(events["at"].min()) - 2 * REPORT_DAYS * DAY_US
    reported = np.sort(frauds["terminal"] * OWNER_SPAN_US + (known_at - base))
    happened = np.sort(frauds["terminal"] * OWNER_SPAN_US + (frauds["at"] - base))
    now = events["terminal"] * OWNER_SPAN_US + (events["at"] - base)
    reports: Ints = np.searchsorted(reported, now, side="right")
    reports -= np.searchsorted(happened, now - REPORT_DAYS * DAY_US, side="right")
    return reports


def name_payments(day: date, block: int, numbers: Ints) -> "pd.Series[str]":
    """Return ids, unique in the feed, that do not reveal a payment's number."""
    scrambled = (numbers * 2_654_435_761 + 1_234_567) % 2**32  # one-to-one, because the factor is odd
    return name_owners(f"P{day:%Y%m%d}-{block}-", scrambled)


def name_owners(prefix: str, numbers: Ints) -> "pd.Series[str]":
    """Return the prefix followed by each number."""
    return pd.Series(
        pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "").to_pandas(), dtype="str"
    )


def to_text(names: tuple[str, ...], codes: npt.NDArray[np.int16]) -> "pd.Series[str]":
    """Return the codes' names."""
    return pd.Series(pa.array(names).take(pa.array(codes)).to_pandas(), dtype="str")


def to_utc(at: Ints) -> pd.DatetimeIndex:
    """Return UTC timestamps of microsecond resolution."""
    return pd.DatetimeIndex(at.astype("datetime64[us]")).tz_localize("UTC")


def draw_unseen(source: PaymentsSource, day: date) -> tuple[str, str] | None:
    """Return a column and a value that is new to it, on a fifth of the later dates, otherwise None."""
    rng = make_generator(source, Purpose.UNSEEN, day, 0)
    if (day - source.first_date).days < UNSEEN_AFTER_DAYS or rng.random() > UNSEEN_SHARE_OF_DATES:
        return None
    column = str(rng.choice(list(UNSEEN)))
    return column, str(rng.choice(UNSEEN[column]))


def plant_dirt(
    rng: np.random.Generator, frame: pd.DataFrame, honest: Ints, unseen: tuple[str, str] | None
) -> pd.DataFrame:
    """Make a few honest rows invalid, give some an unseen value, and duplicate others, some of them changed."""
    picks = rng.choice(honest, (8, 1 + len(frame) // 5_000), replace=False)
    no_amount, endless, negative, no_country, no_time, novel, repeated, disputed = picks
    frame.loc[no_amount, "amount"] = np.nan
    frame.loc[endless, "amount"] = np.inf
    frame.loc[negative, "amount"] *= -1
    frame.loc[no_country, "country"] = None
    frame.loc[no_time, "event_time"] = pd.NaT
    if unseen:
        frame.loc[novel, unseen[0]] = unseen[1]
    changed = frame.loc[disputed].assign(amount=frame.loc[disputed, "amount"] + 1)
    dirty: pd.DataFrame = pd.concat([frame, frame.loc[repeated], changed], ignore_index=True)
    return dirty
