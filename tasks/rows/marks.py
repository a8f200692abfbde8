"""The values that the fit rows have beyond a vocabulary, as 64-bit hashes in base64: `Column.rare`.

Hashes are short, and no name that occurs once is in a bundle.
"""

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

MISSING = 0  # the mark of a missing value in the fit rows

Hashes = npt.NDArray[np.uint64]


def write_marks(texts: pa.Array, vocabulary: Sequence[str], has_missing: bool = False) -> str:
    """Marks of the distinct texts (T,) that the vocabulary lacks, and of a missing value; "" if there are none."""
    beyond = texts.filter(pc.invert(pc.is_in(texts, pa.array(vocabulary, pa.string()))))
    marks = np.sort(hash_texts(beyond.to_pylist()))
    if has_missing:
        marks = np.insert(marks, 0, MISSING)
    return base64.b64encode(marks.astype("<u8").tobytes()).decode()


def read_marks(rare: str) -> Hashes:
    """The marks of a column, in order; a missing value's is the first."""
    return np.frombuffer(base64.b64decode(rare), "<u8")


def hash_texts(texts: Sequence[str]) -> Hashes:
    """The hash of each text (T,), without a key: any host can score."""
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)
