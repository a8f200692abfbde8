from collections import Counter
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.ingest import ingest_arrivals
from tasks.rows.params import EventTime, IngestParams, LabelColumn
from tasks.sources.codes import FAULTS, FORMATS, WELL_FORMED, WORDS, CodesSource, draw_day, spoil
from tasks.sources.kinds import Window

BERLIN = ZoneInfo("Europe/Berlin")
FIRST = date(2026, 3, 28)  # the night after it, clocks change in Berlin
SOURCE = CodesSource(kind="codes", seed=3, rows_per_day=4000, first_date=FIRST)
OWNER = {word: part for part, words in WORDS.items() for word in words}


def format_of(code: str) -> tuple[str, ...]:
    return tuple(OWNER.get(word, "?") for word in code.split(" "))


def test_well_formed_codes_follow_the_formats_in_their_shares_and_malformed_ones_none():
    rows = draw_day(SOURCE, BERLIN, FIRST).to_pylist()
    formats = Counter(format_of(row["code"]) for row in rows if row["fault"] == WELL_FORMED)
    assert formats.keys() == FORMATS.keys()
    assert all(abs(formats[name] / formats.total() - share) < 0.03 for name, share in FORMATS.items())
    assert not any(format_of(row["code"]) in FORMATS for row in rows if row["fault"] != WELL_FORMED)


def test_about_one_in_a_hundred_is_malformed_in_each_way():
    days = [draw_day(SOURCE, BERLIN, date(2026, 4, day)) for day in range(1, 6)]
    faults = Counter(pa.concat_tables(days)["fault"].to_pylist())
    assert faults.keys() == {WELL_FORMED, *FAULTS}
    assert 0.007 < 1 - faults[WELL_FORMED] / faults.total() < 0.013
    assert min(faults[fault] for fault in FAULTS) > 25


def test_every_fault_breaks_every_word_that_it_may_hit():
    rng = np.random.default_rng(0)
    for name in FORMATS:
        for fault in FAULTS:
            for _ in range(100):
                words = [str(rng.choice(WORDS[part])) for part in name]
                assert format_of(" ".join(spoil(rng, words, fault))) not in FORMATS


def test_there_are_more_than_750_words_and_the_commonest_make_up_most_of_the_text():
    texts = pa.concat_tables([draw_day(SOURCE, BERLIN, date(2026, 4, day)) for day in range(1, 11)])["code"].to_pylist()
    counts = Counter(word for text in texts for word in text.split())
    assert len(counts) > 750
    assert sum(n for _, n in counts.most_common(100)) > 0.8 * counts.total()


def test_a_day_is_the_same_whenever_it_is_drawn_and_lies_within_its_local_day():
    day = date(2026, 3, 29)
    rows = draw_day(SOURCE, BERLIN, day)
    assert rows.equals(draw_day(SOURCE, BERLIN, day)) and not rows.equals(draw_day(SOURCE, BERLIN, FIRST))
    times = rows["event_time"]
    assert pc.min(times).as_py() >= datetime(2026, 3, 28, 23, tzinfo=UTC)
    assert datetime(2026, 3, 29, 21, tzinfo=UTC) < pc.max(times).as_py() < datetime(2026, 3, 29, 22, tzinfo=UTC)


def test_days_that_are_over_land_with_their_labels(make_site):
    site = make_site("Europe/Berlin")
    params = IngestParams(
        source=SOURCE,
        event_time=EventTime(column="event_time"),
        labels=LabelColumn(column="fault", normal=(WELL_FORMED,)),
    )
    now = datetime(2026, 3, 29, 22, 0, tzinfo=UTC)  # the end of the second day in Berlin
    done = ingest_arrivals(site, params, Window(date(2026, 3, 1), date(2026, 3, 31), now))
    assert done.dates == (FIRST, date(2026, 3, 29)) and done.rows == 8000
    labels = site.warehouse.read_labels("toy", datetime(2027, 1, 1, tzinfo=UTC))
    assert 50 < (labels["label"] == 1).sum() < 120
