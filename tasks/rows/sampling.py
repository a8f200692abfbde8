"""A random order of records that depends only on their ids and a seed, not on slices or batches."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def draw_order(record_ids: Sequence[str], seed: int) -> npt.NDArray[np.float64]:
    """A sort key for each record that depends only on its id and the seed."""
    digests = (hashlib.blake2b(f"{seed}:{record}".encode(), digest_size=8).digest() for record in record_ids)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
