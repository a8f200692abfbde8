"""The loader for MLflow: `mlflow models serve`, on a host with this package, returns score, rank, p-value and flag.

In: records with the detector's columns, as a frame, or over HTTP as JSON; docs/realtime.md describes the formats. Out,
per record: score, percentile_rank, p_value, is_flagged; with a reducer also second_stage_probability (missing if not
flagged) and is_suppressed. Records that a night would quarantine for a missing or infinite value are refused.
"""

import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from models.columns import Column
from models.detector import Detector
from tasks.errors import NightjarError, RecordInvalid
from tasks.rows.contract import TYPES
from tasks.rows.judge import judge
from tasks.rows.kinds import KINDS
from tasks.rows.schema import MISSING_WORDS, cast_column

MOST_ROWS = 10_000  # per request
FORMS = ("dataframe_records", "dataframe_split")
SECOND_STAGE = ["second_stage_probability", "is_suppressed"]  # only from a detector with a reducer
SERVER = "mlflow.pyfunc.scoring_server.app"
TODO = "correct the request; docs/realtime.md describes the formats"


class ServedDetector:
    """A detector behind MLflow's `predict` and its server."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        # In bundles older than this list, no value may be missing.
        lists = (_names(detector.lineage.get(key)) for key in ("nullable", "infinite", "history"))
        self.nullable, self.infinite, self.history = lists
        formats = detector.lineage.get("formats")
        self.formats = {str(k): str(form) for k, form in formats.items()} if isinstance(formats, dict) else {}

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Score the rows of a frame with the detector's columns; other columns are ignored. Raises RecordInvalid."""
        refuse_absent(self.history, [frame.columns])
        present = [column.name for column in self.detector.columns if column.name in frame]
        return self.score(pa.Table.from_pandas(frame[present], preserve_index=False))

    def score(self, table: pa.Table) -> pd.DataFrame:
        """Score the rows of a table with the detector's columns. Raises RecordInvalid."""
        answer = pd.DataFrame(judge(self.detector, self._complete(table)).arrays())
        return answer if self.detector.reducer else answer.drop(columns=SECOND_STAGE)

    def respond(self, body: bytes, content_type: str | None, *ignored: object) -> Any:
        """Answer one HTTP request, instead of MLflow's `invocations`."""
        from mlflow.pyfunc.scoring_server import InvocationsResponse

        try:
            answer = self.score(read_request(body, content_type, self.detector.columns, self.formats, self.history))
        except NightjarError as error:
            failure = {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}
            return InvocationsResponse(json.dumps(failure), 400, "application/json")
        rows = answer.astype(object).where(answer.notna(), None).to_dict("records")
        return InvocationsResponse(json.dumps({"predictions": rows}, allow_nan=False), 200, "application/json")

    def _complete(self, table: pa.Table) -> pa.Table:
        """Add absent columns as nulls. Raises RecordInvalid for a missing or infinite value that is not allowed."""
        for column in self.detector.columns:
            name = column.name
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
            values, may_be_missing = table[name], name in self.nullable
            if values.null_count and not may_be_missing:
                raise _invalid_request(
                    f"column {name}", f"no value in {values.null_count} of {len(values)} rows", "a value in every row"
                )
            if pa.types.is_floating(values.type) and name not in self.infinite and pc.any(pc.is_inf(values)).as_py():
                raise _invalid_request(f"column {name}", "an infinite value", "finite values")
        return table


def read_request(
    body: bytes,
    content_type: str | None,
    columns: Sequence[Column],
    formats: Mapping[str, str],
    history: Collection[str] = (),
) -> pa.Table:
    """The rows of a request as typed columns, only those that the detector reads. Raises RecordInvalid.

    history: history columns, which no row may leave out.
    """
    if (content_type or "").partition(";")[0].strip().lower() != "application/json":
        raise _invalid_request("header Content-Type", repr(content_type), "application/json")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _invalid_request("body", f"{len(body)} bytes that are not JSON", "a JSON object") from error
    rows = parse_rows(document)
    if len(rows) > MOST_ROWS:
        raise _invalid_request("body", f"{len(rows):,} rows", f"at most {MOST_ROWS:,} in one request")
    refuse_absent(history, rows)
    typed = {c.name: type_values(c, [row.get(c.name) for row in rows], formats.get(c.name)) for c in columns}
    return pa.table(typed)


def refuse_absent(history: Collection[str], rows: Sequence[Collection[str]]) -> None:
    """Refuse rows, each its names of columns, without a history column: none is computed here. Raises RecordInvalid.

    Null is accepted: it is the history of a record without an entity.
    """
    absent = sorted(name for name in history if any(name not in row for row in rows))
    if absent:
        lacking = sum(any(name not in row for name in absent) for row in rows)
        raise RecordInvalid(
            "The request lacks history columns, which cannot be computed here.",
            where=f"column {', '.join(absent)}",
            got=f"{lacking:,} of {len(rows):,} rows without them",
            expected="what enrich in params.yaml says, of the records before this one; null without an entity",
            todo="send them with the request, or score the record with nightjar rank or nightjar score --source, which "
            "compute them from the lake; docs/realtime.md",
        )


def parse_rows(document: object) -> list[dict[str, Any]]:
    """The rows of a request, each as values by column. Raises RecordInvalid."""
    keys = list(document) if isinstance(document, dict) else []
    if not isinstance(document, dict) or len(keys) != 1 or keys[0] not in FORMS:
        got = f"the keys {_show(keys)}" if isinstance(document, dict) else _name_kind(document)
        raise _invalid_request("body", got, f"an object with one key, {' or '.join(FORMS)}")
    [(form, content)] = document.items()
    rows = content if form == "dataframe_records" else _unfold(content)
    if not isinstance(rows, list):
        raise _invalid_request(form, _name_kind(rows), "an array of rows")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _invalid_request(f"{form}, row {number}", _name_kind(row), "an object of values by column")
    return rows


def _unfold(content: object) -> list[dict[str, Any]]:
    """The rows of `dataframe_split`."""
    names, data = (content.get(key) if isinstance(content, dict) else None for key in ("columns", "data"))
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and isinstance(data, list)):
        raise _invalid_request(
            "dataframe_split", _name_kind(content), "an object with the arrays columns, of names, and data"
        )
    if len(set(names)) < len(names):
        twice = [name for name in names if names.count(name) > 1]
        raise _invalid_request("dataframe_split, columns", f"{_show(twice[:1])} twice", "each name once")
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(names):
            got = f"{len(row)} values" if isinstance(row, list) else _name_kind(row)
            raise _invalid_request(f"dataframe_split, row {number} of data", got, f"an array of {len(names)} values")
    return [dict(zip(names, row, strict=True)) for row in data]


def type_values(column: Column, values: Sequence[object], form: str | None = None) -> pa.Array | pa.ChunkedArray:
    """Read a column's JSON values (N,) as a night would; null and NaN are missing values. Raises RecordInvalid.

    `form`: the contract's format of the column's texts.
    """
    kind = KINDS[column.kind]
    values = _read_format(column, values, form) if form else values
    typed: list[object] = []
    for value in values:
        is_missing = value is None or (isinstance(value, float) and math.isnan(value))
        try:
            typed.append(None if is_missing else kind.read_json(column, value))
        except (TypeError, ValueError, OverflowError) as error:
            raise _unreadable(column, values, len(typed)) from error
    given = pa.array(typed, kind.arrow(column))
    finished = kind.finish(given)
    lost = pc.and_(given.is_valid(), finished.is_null())
    if pc.any(lost).as_py():
        raise _unreadable(column, values, pc.index(lost, True).as_py())
    return finished


def _read_format(column: Column, values: Sequence[object], form: str) -> list[object]:
    """The values, with texts of the format (and numbers, if they are times) as JSON has them otherwise."""
    is_time = column.kind == "datetime"
    places = [n for n, v in enumerate(values) if isinstance(v, str) or (is_time and type(v) in (int, float) and v == v)]
    texts = pa.array([str(values[place]) for place in places], pa.string())
    found = cast_column(texts, TYPES["timestamp" if is_time else "float"], form).to_pylist()
    read = list(values)
    for place, text, value in zip(places, texts.to_pylist(), found, strict=True):
        if value is None and text.strip().lower() not in MISSING_WORDS:
            raise _unreadable(column, values, place, f", or a text written {form}")
        read[place] = value.isoformat() if isinstance(value, datetime) else value
    return read


def _unreadable(column: Column, values: Sequence[object], place: int, also: str = "") -> RecordInvalid:
    # The message does not quote the value, which may be personal.
    where = f"column {column.name}, row {place + 1} of {len(values)}"
    return _invalid_request(
        where, f"{_name_kind(values[place])} that cannot be read", KINDS[column.kind].accepts(column) + also
    )


def _names(listed: object) -> frozenset[str]:
    return frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()


def _name_kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing")


def _show(names: Sequence[object]) -> str:
    text = ", ".join(ascii(name) for name in names[:5]) or "none"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _invalid_request(where: str, got: str, expected: str) -> RecordInvalid:
    return RecordInvalid("The request cannot be scored.", where=where, got=got, expected=expected, todo=TODO)


def _load_pyfunc(path: str) -> ServedDetector:
    served = ServedDetector(Detector.load(Path(path)))
    if SERVER in sys.modules:  # this is `mlflow models serve`
        from mlflow.pyfunc import scoring_server

        # MLflow's own parser repeats values of the request in its errors, with tracebacks, and returns 500 for some.
        scoring_server.invocations = served.respond
    return served
