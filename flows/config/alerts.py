"""alerts.yaml (whom to notify about what), loaded into frozen types; without the file, nobody is notified.

The address of a channel is a secret. It is in the environment variable NIGHTJAR_CHANNEL_NAME, or in the file of that
name, in lower case, in the folder NIGHTJAR_SECRETS or its folder `channels`.
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ruamel.yaml.nodes import MappingNode

from flows.config.documents import compose_yaml, find_entries, parse_yaml, read_text, write_files
from flows.config.params import detector_names, load_detector, parse_section
from flows.config.settings import Settings
from tasks.errors import ParamsInvalid
from tasks.follow_up.alerts import Alerts, CaseRule

FILE = "alerts.yaml"
PREFIX = "NIGHTJAR_CHANNEL_"


def load_alerts(settings: Settings) -> Alerts | None:
    """The project's alerts.yaml, or None without one.

    Raises ParamsInvalid for a bad key, and for channels, detectors or columns that do not exist.
    """
    path = settings.project / FILE
    text = read_text(path)
    if text is None:
        return None
    alerts = parse_section(Alerts, parse_yaml(text, path), path)
    _check_detectors(alerts, path, detector_names(settings.project))
    _check_columns(alerts, path, _list_published(settings.project))
    return alerts


def read_url(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The address of a channel, for Apprise; None if it is not set."""
    variable = f"{PREFIX}{name.upper()}"
    if url := environment.get(variable):
        return url
    secrets = Path(environment.get("NIGHTJAR_SECRETS", "/nowhere"))
    for folder in (secrets, secrets / "channels"):  # containers mount the second as a whole
        with suppress(OSError, UnicodeDecodeError):
            return (folder / variable.lower()).read_text(encoding="utf-8").strip() or None
    return None


def get_url(name: str) -> str:
    """The same. Raises ParamsInvalid if it is not set."""
    if url := read_url(name):
        return url
    raise ParamsInvalid(
        f"The address of channel {name} is not set.",
        where=f"{PREFIX}{name.upper()}",
        expected="an Apprise URL, such as mailtos://USER:PASSWORD@SERVER?to=ADDRESS or json://HOST/PATH",
        todo="set the variable, for workers too, or put a file of that name, in lower case, in NIGHTJAR_SECRETS",
    )


def snooze_rule(settings: Settings, rule: str, until: datetime) -> None:
    """Write `snoozed_until` of a rule into alerts.yaml; all other text is kept. until: of the file's time zone.

    Raises ParamsInvalid if there is no such rule, or if the file cannot be changed.
    """
    path = settings.project / FILE
    alerts, text = load_alerts(settings), read_text(path) or ""
    if alerts is None or rule not in alerts.rules:
        raise ParamsInvalid(
            f"The rule {rule!r} does not exist.",
            where=str(path),
            expected=", ".join(alerts.rules) if alerts else f"{FILE} in the project's folder",
            todo="use one of these names, or add it: docs/alerts.md",
        )
    edited = _set_in_rule(text, rule, "snoozed_until", f"'{until:%Y-%m-%dT%H:%M}'", path)
    wanted = {**alerts.rules, rule: alerts.rules[rule].model_copy(update={"snoozed_until": until})}
    try:
        is_whole = parse_section(Alerts, parse_yaml(edited, path), path) == alerts.model_copy(update={"rules": wanted})
    except ParamsInvalid:
        is_whole = False
    if not is_whole:
        raise ParamsInvalid(
            f"The rule cannot be changed in {FILE} in its current format; nothing was changed.",
            where=str(path),
            todo=f"add snoozed_until: '{until:%Y-%m-%dT%H:%M}' to the rule {rule} by hand",
        )
    write_files({path: edited})


def _set_in_rule(text: str, rule: str, key: str, value: str, path: Path) -> str:
    _, rules = find_entries(compose_yaml(text, path)).get("rules", (None, None))
    _, node = find_entries(rules).get(rule, (None, None))
    _, old = find_entries(node).get(key, (None, None))
    if old is not None:
        return text[: old.start_mark.index] + value + text[old.end_mark.index :]
    if not isinstance(node, MappingNode) or not node.value:
        return text
    if node.flow_style:
        end = node.end_mark.index - 1
        head = re.sub(r",?\s*$", "", text[:end])
        return f"{head}, {key}: {value}{text[end:]}"
    first = node.start_mark
    return f"{text[: first.index]}{key}: {value}\n{' ' * first.column}{text[first.index :]}"


def _check_detectors(alerts: Alerts, path: Path, known: list[str]) -> None:
    named = {f"rule {name}": rule.detectors for name, rule in alerts.rules.items()}
    named |= {f"maintenance {number}": work.detectors for number, work in enumerate(alerts.maintenance, 1)}
    unknown = [f"{place}: {name}" for place, names in named.items() for name in names if name not in known]
    if unknown:
        raise ParamsInvalid(
            f"{FILE} names detectors that do not exist.",
            where=str(path),
            got="; ".join(unknown),
            expected=", ".join(known),
            todo="correct the file",
        )


def _list_published(project: Path) -> dict[str, set[str]]:
    """The columns whose values each detector publishes; those that cannot be loaded have none here."""
    found = {}
    for name in detector_names(project):
        with suppress(ParamsInvalid):
            found[name] = {*load_detector(project, name).detector.publish.show}
    return found


def _check_columns(alerts: Alerts, path: Path, published: Mapping[str, set[str]]) -> None:
    """Refuse a rule on a column that a detector it names, or no detector at all, publishes."""
    bad = []
    for name, rule in alerts.rules.items():
        columns = list(rule.where) if isinstance(rule, CaseRule) else []
        for detector in [one for one in rule.detectors if one in published]:
            bad += [f"rule {name}: {column} of {detector}" for column in columns if column not in published[detector]]
        if not rule.detectors and len(published):
            anywhere = set().union(*published.values())
            bad += [f"rule {name}: {column}" for column in columns if column not in anywhere]
    if bad:
        raise ParamsInvalid(
            f"{FILE} has rules on columns that are not published.",
            where=str(path),
            got="; ".join(bad),
            expected="columns that publish.show of the detector names",
            todo="correct the rule's `where`, or add the column to publish.show in params.yaml",
        )
