"""`nightjar init`: inspect a source, then write a params section and a contract: both or neither."""

import os
import re
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from ruamel.yaml.nodes import Node

from flows.config.documents import compose_yaml, dump_yaml, find_entries, parse_yaml, read_text, write_files
from flows.config.params import NAME, combine, parse_detector
from flows.config.settings import Settings, load_settings
from flows.config.setup import fill_url
from models.params import QuantilePolicy
from tasks.errors import ParamsInvalid, SourceInvalid, hide_password
from tasks.onboarding.draft import Draft, Request, draft_detector
from tasks.onboarding.profile import Choice
from tasks.rows.contract import Contract
from tasks.rows.params import CalibrateParams, DetectorParams, PublishParams, RunParams
from tasks.sources.files import find_settings, list_files, name_files
from tasks.sources.sql import SqlSource, read_query
from tasks.stores.lake import Lake

QUERY = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
WIDTH = 116  # of a written line
ENDED_DAYS = 7  # if the newest rows are older, the data has ended


@dataclass(frozen=True)
class Layout:
    """The user's options on how files are read: the sheet, the columns' names, and whether there is a header line."""

    sheet: str | None = None
    header: tuple[str, ...] = ()
    is_headed: bool | None = None


def init_detector(
    name: str, source: str, url: str | None, request: Request, force: bool, layout: Layout = Layout()
) -> dict[str, Any]:
    """Write the section and contract of a new detector; returns the choices made."""
    settings, now = load_settings(), datetime.now(UTC)
    params_path, contract_path = settings.project / "params.yaml", settings.project / "contracts" / f"{name}.yaml"
    text = read_text(params_path) or ""
    check_free(name, text, params_path, contract_path, force)
    drafted = _draft(source, url, settings.sources, request, now, layout)
    run, choice = choose_run(drafted, now.date())
    drafted = replace(drafted, choices=(*drafted.choices, choice))
    detector = assemble(drafted, run)
    params = insert_section(text, name, render_section(detector, drafted), params_path)
    combine(name, parse_detector(parse_yaml(params, params_path), params_path, name), params_path, drafted.contract)
    write_files({contract_path: render_contract(drafted.contract, name), params_path: params})
    return {
        "detector": name,
        "columns": [asdict(decision) for decision in drafted.decisions],
        "choices": [asdict(choice) for choice in drafted.choices],
        "notes": [*drafted.notes, *note_leftovers(settings, name)],
        "wrote": [str(params_path), str(contract_path)],
    }


def _draft(source: str, url: str | None, sources: str, request: Request, now: datetime, layout: Layout) -> Draft:
    if url or QUERY.match(source):
        query = name_query(source, url, os.environ)
        return draft_detector(query, [read_query(fill_url(query), now)], request)
    if "://" in source and "${" not in source and hide_password(source) != source:
        raise SourceInvalid(
            "The URL contains a password, which must not be stored in params.yaml.",
            where=source,
            todo="put it in a variable, as in --source 'ftp://user:${PASSWORD}@host/file.csv'",
        )
    files = name_files(source, sources)
    given = {"sheet": layout.sheet, "header": layout.header}
    files = files.model_copy(update={key: value for key, value in given.items() if value})
    found, notes = find_settings(fill_url(files), sources, layout.is_headed)
    drafted = draft_detector(found.model_copy(update={"path": files.path}), list(list_files(found, sources)), request)
    return replace(drafted, notes=(*notes, *drafted.notes))


def check_free(name: str, text: str, params_path: Path, contract_path: Path, force: bool) -> None:
    """Raise ParamsInvalid if the name is invalid or, without `force`, taken."""
    if not re.fullmatch(NAME, name):
        raise ParamsInvalid(
            "The detector's name is invalid.",
            got=repr(name),
            expected="a lower-case letter, then at most 39 lower-case letters, digits and underscores",
        )
    section = name in _detectors(text, params_path)
    taken = [str(params_path)] * section + [str(contract_path)] * contract_path.exists()
    if taken and not force:
        raise ParamsInvalid(
            f"The detector {name!r} already exists; nothing was written.",
            where=", ".join(taken),
            todo="choose another name, or replace its section and contract with --force",
        )


# --- the source ---


def name_query(query: str, url: str | None, environment: Mapping[str, str]) -> SqlSource:
    """The source for a query. A URL with a password is written as the name of its variable, never as the URL."""
    if not url:
        raise SourceInvalid(
            "A query needs a database.",
            got="a query without --url",
            expected="an SQLAlchemy URL such as sqlite:///shop.db",
            todo="add --url; if the URL has a password, put it in a variable: --url '${SHOP_DB}'",
        )
    if "${" in url or not _has_password(url):
        return SqlSource(kind="sql", url=url, query=query)
    holders = [name for name, value in environment.items() if value == url]
    if not holders:
        raise SourceInvalid(
            "The URL contains a password, which must not be stored in params.yaml.",
            expected="an environment variable that holds the URL",
            todo="export SHOP_DB=URL, then --url '${SHOP_DB}'",
        )
    return SqlSource(kind="sql", url="${" + holders[0] + "}", query=query)


def _has_password(url: str) -> bool:
    try:
        parsed = sa.make_url(url)
        bare = sa.URL.create(
            parsed.drivername, host=parsed.host, port=parsed.port, database=parsed.database, query=parsed.query
        ).render_as_string()  # a user is no secret
        return parsed.password is not None or hide_password(bare) != bare
    except (sa.exc.ArgumentError, ValueError):  # or a port that is no number
        return hide_password(url) != url


# --- the texts ---


def choose_run(drafted: Draft, today: date) -> tuple[RunParams, Choice]:
    """The run section. last_date is set only if the newest rows are not in the past; ended data runs by hand."""
    run: dict[str, Any] = {"nights": drafted.nights}
    if drafted.last_date >= today:
        run["last_date"] = drafted.last_date
    age_days = (today - drafted.last_date).days
    if age_days <= ENDED_DAYS:
        return RunParams(**run), Choice("every night", "yes", "the newest rows are from the last week")
    why = f"the newest rows, of {drafted.last_date}, are {age_days} days old: the data seems to have ended"
    return RunParams(**run, every_night=False), Choice("every night", "no", why)


def assemble(drafted: Draft, run: RunParams) -> DetectorParams:
    """The params section."""
    given: dict[str, Any] = {"entity": drafted.entity, "enrich": drafted.enrich}
    return DetectorParams(
        **{key: value for key, value in given.items() if value},
        run=run,
        ingest=drafted.ingest,
        filter=drafted.filter,
        train=drafted.train,
        calibrate=CalibrateParams(threshold=QuantilePolicy(kind="quantile", q=drafted.quantile)),
        publish=PublishParams(show=drafted.show),
    )


def render_section(detector: DetectorParams, drafted: Draft) -> str:
    """The section's text, not indented, without values that equal the default."""
    facts = "; ".join(f"{choice.about} {choice.what}" for choice in drafted.choices if choice.about != "network")
    comment = "".join(f"# {line}\n" for line in _wrap(f"Written by nightjar init: {facts}."))
    return comment + dump_yaml(_kind_first(detector.model_dump(mode="json", exclude_unset=True, by_alias=True)), WIDTH)


def render_contract(contract: Contract, name: str) -> str:
    """The contract's text, with one column or expectation per line."""
    lines = [f"# What a batch of {name} must look like. Written by nightjar init from the data it saw; edit as needed."]
    lines += [
        "# Ranges only warn: a value far outside may be an anomaly and must still be scored.",
        "columns:" if contract.columns else "columns: {}",
    ]
    lines += [
        f"  {_flow(column)}: {_flow(kept.model_dump(exclude_unset=True))}" for column, kept in contract.columns.items()
    ]
    if contract.ignored:
        lines += dump_yaml({"ignored": list(contract.ignored)}, WIDTH).splitlines()
    lines.append("expectations:" if contract.expectations else "expectations: []")
    lines += [f"  - {_flow(expectation.model_dump(exclude_unset=True))}" for expectation in contract.expectations]
    return "\n".join(lines) + "\n"


def insert_section(text: str, name: str, section: str, path: Path) -> str:
    """The text of params.yaml with the section replaced, or added at the end. All other text is kept.

    Raises ParamsInvalid if the text's format does not allow this.
    """
    edited = _insert_lines(text, name, section, path)
    document = parse_yaml(text, path)
    document = document if isinstance(document, dict) else {}
    sections = document.get("detectors") or {}
    others = {key: value for key, value in sections.items() if key != name} if isinstance(sections, dict) else {}
    expected = document | {"detectors": others | {name: parse_yaml(section, path)}}
    if not isinstance(sections, dict) or _parse_or_none(edited, path) != expected:
        raise ParamsInvalid(
            "The section cannot be added to params.yaml in its current format; nothing was changed.",
            where=str(path),
            expected="the key detectors, and below it one indented section per detector",
            todo="rewrite the file that way",
        )
    return edited


def _parse_or_none(text: str, path: Path) -> object:
    try:
        return parse_yaml(text, path)
    except ParamsInvalid:
        return None


def _insert_lines(text: str, name: str, section: str, path: Path) -> str:
    text += "\n" if text and not text.endswith("\n") else ""
    entries = find_entries(compose_yaml(text, path))
    if "detectors" not in entries:
        return text + "detectors:\n" + _indent(name, section, 2)
    _, node = entries["detectors"]
    if not find_entries(node):  # {} or empty
        head, tail = text[: node.start_mark.index].rstrip(" "), text[node.end_mark.index :]
        rest, _, after = tail.partition("\n")
        return f"{head}{rest}\n" + _indent(name, section, 2) + after
    lines = text.splitlines(keepends=True)
    first, last = _place(find_entries(node), name, node, lines)
    sibling = next(iter(find_entries(node).values()))[0]
    block = _indent(name, section, sibling.start_mark.column)
    return "".join([*lines[:first], *([] if first < last else ["\n"]), block, *lines[last:]])


def _place(entries: dict[str, tuple[Node, Node]], name: str, node: Node, lines: list[str]) -> tuple[int, int]:
    """The lines of a section, or the empty span after the last one; comments before the next section are left out."""
    starts = [key.start_mark.line for key, _ in entries.values()] + [node.end_mark.line]
    place = list(entries).index(name) if name in entries else len(entries) - 1
    end = starts[place + 1]
    while not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#"):
        end -= 1
    return (starts[place] if name in entries else end), end


def note_leftovers(settings: Settings, name: str) -> list[str]:
    """A note if rows of an earlier detector of the same name would be mixed with the new detector's rows."""
    dates = Lake(settings.lake_root).dates("landing", name)
    if not dates:
        return []
    return [f"the lake holds {len(dates)} landed dates of an earlier {name}, which now count as this detector's; "
            f"choose another name if it is other data"]  # fmt: skip


def _detectors(text: str, path: Path) -> dict[str, tuple[Node, Node]]:
    _, node = find_entries(compose_yaml(text, path)).get("detectors", (None, None))
    return find_entries(node)


def _kind_first(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {key: _kind_first(document[key]) for key in sorted(document, key=lambda key: key != "kind")}


def _indent(name: str, section: str, by: int) -> str:
    body = "".join(f"{' ' * 2 * by}{line}\n" if line else "\n" for line in section.splitlines())
    return f"{' ' * by}{name}:\n{body}"


def _flow(document: object) -> str:
    text = dump_yaml(document, width=10**6, on_one_line=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH)
