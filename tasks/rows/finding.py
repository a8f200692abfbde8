"""One finding per night, decided from its statistics: the data broke, an attack, the world changed, or nothing.

Data that break do so overnight and in ways of their own. An attack adds flags and leaves the other rows as they were. A
world that changes moves the other rows too. They are looked for in this order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.rows.drift import ALPHA, MIN_NIGHTS, OF_CATEGORY, SHIFT_EXPLAINS, TOGETHER, PastNight
from tasks.stores.tables import ATTACK, DATA_BROKE, NOTHING, WORLD_CHANGED, Drift

RESCALED = 3.0  # times the usual median, or a third of it: more than a world changes overnight
GROSS = 1.0  # a PSI that only a fault of the data makes overnight
MOSTLY_UNSEEN = 0.5
RECENT = 3  # nights
NOTED = (
    "canary_recall",
    "arrival_hours",
    "score_psi",
    "score_shift",
    "flags_lacking",
    "week_flags_lacking",
    "false_alarms_in_excess",
)
ALONE = "normal rows alone should give"
BREAKS = (
    "rows_lacking",
    "rows_in_excess",
    "null_share",
    "quarantine_share",
    "mode_share",
    "renamed_share",
)


@dataclass(frozen=True)
class Decision:
    """A finding, its evidence as sentences, and what to do."""

    finding: str
    evidence: tuple[str, ...]
    todo: str


@dataclass(frozen=True)
class Watched:
    """The statistics of a night with their bounds, those of the nights before, and names for its evidence.

    shared: of each column in which flags were counted, the value that most of them share. is_holiday: the number of
    rows says nothing.
    """

    drift: Sequence[Drift]
    history: Sequence[PastNight]
    shared: Mapping[str, str]
    is_holiday: bool = False

    def find(self, column: str, statistic: str) -> float:
        """The value of a statistic; 0 if it was not measured."""
        return next((one.value for one in self.drift if (one.column, one.statistic) == (column, statistic)), 0.0)

    def beyond(self, *statistics: str) -> list[Drift]:
        """The statistics of these names that are beyond their bound."""
        return [one for one in self.drift if one.statistic.split(" ")[0] in statistics and one.is_beyond]

    def is_sudden(self, column: str) -> bool:
        """Whether a column's change is far larger than on the recent nights."""
        recent = sorted(self.history, key=lambda past: past.batch_date)[-RECENT:]
        before = max((past.values.get((column, "psi"), 0.0) for past in recent), default=0.0)
        return self.find(column, "psi") > 3 * before

    def is_rescaled(self, column: str) -> bool:
        """Whether a column's values have suddenly been multiplied by one number, such as miles for kilometres."""
        ratio, psi, left = (self.find(column, name) for name in ("median_ratio", "psi", "psi_rescaled"))
        is_scale = abs(ratio - 1) > 0.05 and left < SHIFT_EXPLAINS * psi
        return is_scale and self.is_sudden(column)


def decide(detector: str, day: str, night: Watched) -> Decision:
    """The finding of a night."""
    notes = tuple(list_notes(night))
    if broken := list_breaks(night):
        again = f"nightjar score {detector} --date {day}"
        todo = f"stop: do not act on this night's flags; have the data delivered again, then {again}"
        if night.beyond("rows_lacking", "rows_in_excess"):
            todo += "; if it was a holiday, add the date to monitor.holidays in params.yaml, then the same command"
        return Decision(DATA_BROKE, (*broken, *notes), todo)
    changed, struck = list_changes(night), list_strikes(night)
    if struck and not changed:
        return Decision(ATTACK, (*struck, *notes), f"look now: nightjar flags {detector} --date {day}")
    if changed:
        todo = f"if it lasts, retrain: nightjar run {detector} --retrain, then nightjar compare {detector}"
        if any(night.is_rescaled(one.column) for one in night.beyond("psi_unflagged")):
            again = f"nightjar score {detector} --date {day}"
            todo = f"ask for the unit; if it is wrong, have the data delivered again, then {again}; {todo}"
        return Decision(WORLD_CHANGED, (*changed, *struck, *notes), todo)
    return Decision(NOTHING, notes, "")


def list_breaks(night: Watched) -> list[str]:
    """Signs that the data broke, as sentences."""
    found = [describe_break(night, one) for one in night.beyond(*BREAKS) if not is_expected(night, one)]
    moved = night.beyond("hour_shift", "swapped")
    found += [describe_break(night, one) for one in moved if night.find(one.column, "p_value") < ALPHA]
    found += [
        f"{one.column}: {one.value:.0%} of its values never occurred in training."
        for one in night.beyond("unseen_share")
        if one.value > MOSTLY_UNSEEN
    ]
    for one in night.beyond("psi"):
        if not night.is_sudden(one.column) or night.find(one.column, "p_value") >= ALPHA:
            continue
        ratio = night.find(one.column, "median_ratio") or 1.0
        if max(ratio, 1 / ratio) > RESCALED:
            found.append(f"{one.column}: its median is suddenly {ratio:.3g} times the training's; look at its unit.")
        elif one.value > GROSS:
            found.append(f"{one.column}: suddenly its values differ grossly from the training's (PSI {one.value:.2f}).")
    return list(dict.fromkeys(found))


def is_expected(night: Watched, one: Drift) -> bool:
    """Whether the night's date explains a statistic: the number of rows on a holiday."""
    return night.is_holiday and one.statistic in ("rows_lacking", "rows_in_excess")


def describe_break(night: Watched, one: Drift) -> str:
    """One sign that the data broke."""
    value, bound = one.value, one.bound or 0.0
    if one.statistic.startswith("swapped"):
        return f"{one.column} and {one.statistic.removeprefix('swapped with ')} look swapped."
    rows = f"{night.find('', 'rows'):,.0f} rows"
    return {
        "rows_lacking": f"{rows}, {value:.0%} fewer than usual on this weekday; up to {bound:.0%} is usual.",
        "rows_in_excess": f"{rows}, {value:.0%} more than usual on this weekday; up to {bound:.0%} is usual.",
        "null_share": f"{one.column}: missing in {value:.1%} of the rows; up to {bound:.1%} is usual.",
        "quarantine_share": f"{value:.1%} of the rows are in quarantine; up to {bound:.1%} is usual.",
        "mode_share": f"{one.column}: {value:.0%} of the rows have the same value; up to {bound:.0%} is usual.",
        "hour_shift": f"{one.column}: all times look moved by {value:.0f} hours; look at its time zone.",
        "renamed_share": f"{one.column}: a category has vanished, and {value:.0%} of the rows have a name never seen.",
    }[one.statistic]


def list_changes(night: Watched) -> list[str]:
    """Signs that the rows as a whole have changed, as sentences."""
    found = []
    for one in sorted(night.beyond("psi_unflagged"), key=lambda one: -one.value):
        if night.find(one.column, "p_value") < ALPHA:
            ratio = night.find(one.column, "median_ratio")
            more = f"; its median is {ratio:.3g} times the training's" if ratio and abs(ratio - 1) > 0.05 else ""
            if night.is_rescaled(one.column):
                more = f"; suddenly all its values are {ratio:.3g} times the training's, as in another unit"
            found.append(f"{one.column}: PSI {one.value:.3f} without the flagged rows, bound {one.bound:.3f}{more}.")
    for one in night.beyond("unseen_share"):
        found.append(f"{one.column}: {one.value:.1%} of its values never occurred in training, bound {one.bound:.1%}.")
    return found


def list_strikes(night: Watched) -> list[str]:
    """Signs of more or more similar flags than usual, as sentences."""
    found = [
        f"{one.value:.2%} of the rows are flagged; up to {one.bound:.2%} is usual." for one in night.beyond("flag_rate")
    ]
    beyond = night.beyond("flags_of_one_value", OF_CATEGORY)
    worst = {one.column: one for one in sorted(beyond, key=lambda one: one.value - (one.bound or 0.0))}
    for name, one in sorted(worst.items(), key=lambda item: (item[1].bound or 0.0) - item[1].value):
        value = night.shared.get(name) or one.statistic.partition(" ")[2]
        most = math.floor(one.bound or 0.0)
        what = f"all categories: {value}" if name == TOGETHER else f"one {name}{value and f', {value}'}"
        found.append(f"{one.value:.0f} flags share {what}; up to {most:,} is usual.")
    return found


def list_notes(night: Watched) -> list[str]:
    """What else should be known, and makes no finding, as sentences."""
    found = [f"A holiday: {describe_break(night, one)}" for one in night.beyond(*BREAKS) if is_expected(night, one)]
    found += [describe_note(one) for one in night.beyond(*NOTED)]
    if not any(one.statistic == "rows_lacking" for one in night.drift):
        found.append(f"Fewer than {MIN_NIGHTS} earlier nights are known, too few to learn how many rows are usual.")
    return found


def describe_note(one: Drift) -> str:
    """A statistic beyond its bound that makes no finding."""
    value, bound = one.value, one.bound or 0.0
    return {
        "canary_recall": f"Canary {one.column}: noticed in {value:.0%} of its rows, usually in more than {bound:.0%}.",
        "arrival_hours": f"The last rows arrived {value:.0f} hours after the day's end, later than usual.",
        "score_psi": f"Scores have moved away from the calibration's (PSI {value:.3f}).",
        "score_shift": f"The median score is {value:.0f} ranks away from the calibration's.",
        "flags_lacking": f"{value:.0%} fewer flags than {ALONE}; up to {bound:.0%} fewer is chance.",
        "week_flags_lacking": f"Over a week {value:.0%} fewer flags than {ALONE}; up to {bound:.0%} fewer is chance.",
        "false_alarms_in_excess": f"In the latest nights with labels, {value:.0%} more false alarms than the "
        f"calibration says; up to {bound:.0%} more is chance.",
    }[one.statistic]
