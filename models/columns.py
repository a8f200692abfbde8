"""What a detector reads: its typed columns. Nothing here needs torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

MISSING_TIME = int(np.iinfo(np.int64).min)  # what NumPy calls NaT

PADDING = -1  # code of the positions after a sequence's last token
RARE, UNSEEN = "<rare>", "<unseen>"  # the names of a sequence's slots after those of its vocabulary


@dataclass(frozen=True)
class Tokens:
    """How the text of a sequence column becomes tokens, at most `length` per record, and how tokens become slots."""

    separator: str = r"\s+"  # a regular expression; words are the text between its matches
    ngrams: int = 1  # 1: single words; 2: also pairs of neighbours; and so on
    words: int = 0  # number read from the beginning of each record
    form: Literal["multi_hot", "counts"] = "multi_hot"
    shapes: bool = False  # pairs and longer runs use the words' shapes: AA999 for GB132

    @property
    def length(self) -> int:
        """The most tokens a record can have; runs of words also include one edge at each end of the text."""
        return self.words + sum(max(0, self.words + 3 - k) for k in range(2, self.ngrams + 1))


@dataclass(frozen=True)
class Column:
    """One column that a detector reads; categorical columns and sequences have a vocabulary.

    shape, in pixels, applies to images only, tokens to sequences only. rare: marks of the categories or tokens that the
    fit rows have beyond the vocabulary, see tasks/rows/marks.py. They share the slot after the vocabulary's. What the
    fit rows do not have is in the last slot: one further if there are marks, the same without.

    Keys are read, not learnt from: they have no slots, and come after all other columns. is_entity: its values say whom
    a record is about. per_entity: above 0, the numbers are scaled for each entity, see `EntityScales`; it is the
    `minimum` there.
    """

    name: str
    kind: Literal["numeric", "log_numeric", "categorical", "datetime", "image", "sequence", "key"]
    vocabulary: tuple[str, ...] = ()
    shape: tuple[int, int] = (0, 0)
    tokens: Tokens = Tokens()
    # Omitted where there are none, so that bundles without rare values keep their bytes.
    rare: Annotated[str, Field(exclude_if=lambda given: not given)] = ""
    is_entity: Annotated[bool, Field(exclude_if=lambda given: not given)] = False
    per_entity: Annotated[int, Field(exclude_if=lambda given: not given)] = 0

    @property
    def unseen(self) -> int:
        """The code of a category or token that did not occur in fitting: that of the last slot."""
        return len(self.vocabulary) + bool(self.rare)
