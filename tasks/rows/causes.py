"""Why a record got its score: the largest shares of the score, with actual and expected values, as JSON or text.

In: the detector's explanation of N rows and the rows themselves. A masked column shows no value.
"""

import json
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa

from models.columns import RARE, UNSEEN, Column
from models.detector import Explanation
from tasks.rows.kinds import KINDS, plain, round_value
from tasks.rows.tokens import list_tokens

MASKED = "masked"


def name_causes(
    explanation: Explanation, rows: pa.Table, columns: Sequence[Column], masked: Set[str], most: int
) -> list[str]:
    """The causes of each row as JSON text: the `most` largest shares of the score, then "other".

    Shares add up to the score. "part" names a patch of an image or a token of a sequence. Actual and expected values
    are in the record's own units; a masked column shows neither.
    """
    actual = {column.name: rows[column.name].to_pylist() for column in columns if column.kind != "image"}
    texts = []
    for row, shares in enumerate(explanation.contributions):
        order = np.argsort(-shares, kind="stable")
        causes: list[dict[str, Any]] = []
        for position in order[:most]:
            unit = explanation.units[position]
            column = columns[unit.column]
            shown: dict[str, Any] = {"part": unit.part} if unit.part else {}
            if not unit.part:
                shown["actual"] = plain(actual[column.name][row])
            elif unit.part in (RARE, UNSEEN):
                shown["actual"] = ", ".join(list_tokens(actual[column.name][row], unit.part, column))
            else:
                shown["actual"] = round_value(explanation.actual[row, position])
            shown["expected"] = KINDS[column.kind].show(column, explanation.expected[row, position])
            if column.name in masked:
                shown = dict.fromkeys(shown, MASKED)
            causes.append({"column": column.name, "share": float(shares[position])} | shown)
        causes.append({"column": "other", "share": float(shares[order[most:]].sum())})
        texts.append(json.dumps(causes, allow_nan=False))
    return texts
