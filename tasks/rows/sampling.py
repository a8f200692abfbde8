"""An order of records that depends on their ids and a seed alone, so that slices and batches change nothing."""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def draw_order(record_ids: Sequence[str], seed: int) -> npt.NDArray[np.float64]:
    """A place in line for each record that depends on nothing but its id and the seed."""
    digests = (hashlib.blake2b(f"{seed}:{record}".encode(), digest_size=8).digest() for record in record_ids)
    return np.array([int.from_bytes(digest, "big") / 2**64 for digest in digests])
