"""What is published of a flagged record: whom it is about, and its own values that params name.

Masked columns are never published. A pseudonymised column is published as a keyed hash (HMAC-SHA-256, RFC 2104): the
same value always gets the same pseudonym, and nobody without the key can find or test the value.
"""

import hashlib
import hmac
import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd
import pyarrow as pa

from tasks.rows.entities import lack_entity

PSEUDONYM_DIGITS = 16  # 64 bits: among 100 million entities, two share a pseudonym with a probability of 0.03 %
MOST_TEXT = 500  # characters of a published text: at most 2,000 bytes, which an index of PostgreSQL can hold


@dataclass(frozen=True)
class RecordRule:
    """The entity's column, the columns to show, those of both to replace by a pseudonym, and the key for that."""

    entity: str | None = None
    show: tuple[str, ...] = ()
    pseudonymise: frozenset[str] = frozenset()
    key: bytes = field(default=b"", repr=False)

    @property
    def columns(self) -> list[str]:
        """The columns that it reads, each once."""
        return list(dict.fromkeys([*([self.entity] if self.entity else []), *self.show]))

    @property
    def hides_entity(self) -> bool:
        """Whether the entity is published as a pseudonym."""
        return self.entity in self.pseudonymise

    def pseudonym(self, value: object) -> str:
        """The pseudonym of a value, hexadecimal."""
        text = str(value).encode("utf-8", "surrogatepass")
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]

    def describe(self, rows: pa.Table) -> pd.DataFrame:
        """entity (text or None) and record (JSON text or None) of N rows, in their order.

        Which rows have no entity: see `lack_entity`.
        """
        values = {name: [self._show(name, value) for value in rows[name].to_pylist()] for name in self.columns}
        entities: list[str | None] = [None] * rows.num_rows
        if self.entity:
            given = zip(lack_entity(rows[self.entity]).to_pylist(), values[self.entity], strict=True)
            entities = [None if is_missing else str(shown) for is_missing, shown in given]
        records: list[str | None] = [None] * rows.num_rows
        if self.show:
            shown = zip(*(values[name] for name in self.show), strict=True)
            records = [json.dumps(dict(zip(self.show, row, strict=True)), allow_nan=False) for row in shown]
        return pd.DataFrame({"entity": entities, "record": records}, dtype=object)

    def _show(self, name: str, value: Any) -> Any:
        """A value as JSON can hold it."""
        if value is None:
            return None
        if name in self.pseudonymise:
            return self.pseudonym(value)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, datetime):
            return value.isoformat()
        return value[:MOST_TEXT] if isinstance(value, str) else value
