"""What a detector reads: its typed columns. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

MISSING_TIME = int(np.iinfo(np.int64).min)  # what NumPy calls NaT


PADDING = -1  # the code of a place behind a sequence's last token


@dataclass(frozen=True)
class Tokens:
    """How the text of a sequence column becomes tokens, at most `length` a record, and its tokens slots."""

    separator: str = r"\s+"  # a regular expression; words are what stands between its matches
    ngrams: int = 1  # 1: single words; 2: pairs of neighbours as well; and so on
    words: int = 0  # read of each record, from its beginning
    form: Literal["multi_hot", "counts"] = "multi_hot"
    shapes: bool = False  # pairs and longer runs are of the words' shapes: AA999 for GB132

    @property
    def length(self) -> int:
        """The most tokens a record can have: of k words each, one edge of the text at either end counted among them."""
        return self.words + sum(max(0, self.words + 3 - k) for k in range(2, self.ngrams + 1))


@dataclass(frozen=True)
class Column:
    """One column a detector reads; categorical ones and sequences have a vocabulary.

    shape, in pixels, matters to an image only, and tokens to a sequence.
    """

    name: str
    kind: Literal["numeric", "log_numeric", "categorical", "datetime", "image", "sequence"]
    vocabulary: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    tokens: Tokens = Tokens()
