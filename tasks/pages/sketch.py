"""A night as its detector sees it: the latent map of some rows, and the causes within flagged images and texts.

In: rows with the detector's columns, N of them drawn from the night, and its flags. Out: shapes and pictures for the
report. Masked columns are not shown.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from models.detector import Detector, rebuild
from models.encoders import encode_records
from models.fitting import pin_arithmetic
from models.records import Records
from tasks.pages.charts import Chart, lay_out_points
from tasks.rows.columns import to_records
from tasks.rows.tokens import find_tokens

SIDE = 64  # pixels of a shown image; larger ones are thinned out
MOST_BYTES = 200_000  # of the images on a page
AROUND = 40  # characters shown before and after a token that is a cause
MOST_TEXT = 300  # characters shown of a text

Floats = npt.NDArray[np.float64]
Pieces = list[tuple[str, bool]]  # of a text, in order, and whether each is a cause


@dataclass(frozen=True)
class Sketch:
    """The latent map; and by record id the flagged images, each beside its reconstruction, and texts in pieces."""

    latent: Chart | None = None
    images: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    texts: Mapping[str, list[Pieces]] = field(default_factory=dict)


def sketch_night(
    detector: Detector, rows: pa.Table, is_flagged: npt.NDArray[np.bool_], causes: Mapping[str, str], masked: Set[str]
) -> Sketch:
    """Sketch rows (N,) of a night, is_flagged (N,). causes: those of the flags to show, by record id, as JSON.

    Images are shown of as many flags, in their order, as MOST_BYTES allow.
    """
    if not rows.num_rows:
        return Sketch()
    records, _ = to_records(rows, detector.columns)
    latent = lay_out_points(project(detector.encode(records)), is_flagged)
    is_shown = np.array([record in causes for record in rows["record_id"].to_pylist()])
    shown, flags = rows.filter(pa.array(is_shown)), records[torch.from_numpy(is_shown)]
    ids = shown["record_id"].to_pylist()
    images = dict(zip(ids, draw_images(detector, flags, masked), strict=True))
    texts = dict(zip(ids, mark_texts(detector, shown, [causes[one] for one in ids], masked), strict=True))
    return Sketch(latent, keep_first(images, causes), texts)


def keep_first(images: Mapping[str, list[dict[str, Any]]], order: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The images of the first records in an order, as many as MOST_BYTES allow."""
    kept, size = {}, 0
    for record in order:
        size += sum(len(image["url"]) for image in images.get(record, ()))
        if record in images and size <= MOST_BYTES:
            kept[record] = images[record]
    return kept


def project(latent: Floats) -> Floats:
    """The first two principal components (N, 2) of (N, Z); a missing second one is zero."""
    centred = latent - latent.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # columns, the smallest component first
    axes = axes[:, ::-1][:, :2]
    found: Floats = centred @ (axes * np.where(axes.sum(axis=0) < 0, -1, 1))  # the sign is arbitrary otherwise
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def draw_images(detector: Detector, records: Records, masked: Set[str]) -> list[list[dict[str, Any]]]:
    """The images of each record (N,) beside their reconstruction."""
    found: list[list[dict[str, Any]]] = [[] for _ in range(len(records))]
    columns = [n for n, one in enumerate(detector.columns) if one.kind == "image" and one.name not in masked]
    if not columns or not found:
        return found
    with pin_arithmetic(detector.threads):
        encoded = encode_records(detector.encoder, records)  # (N, D)
        rebuilt = rebuild(detector.networks, encoded).mean(dim=0).T  # (N, D)
    for number in columns:
        own, column = detector.encoder.slots == number, detector.columns[number]
        for place, images in enumerate(found):
            pair = [side[place, own].reshape(column.shape).numpy() for side in (encoded, rebuilt)]
            images.append({"column": column.name} | draw_pair(*pair))
    return found


def draw_pair(image: npt.NDArray[np.float32], rebuilt: npt.NDArray[np.float32]) -> dict[str, Any]:
    """An image, 0 to 1, and to its right the reconstruction, as a small PNG: its data URL, width and height."""
    step = -(-max(image.shape) // SIDE)
    gap = np.ones((image.shape[0], 2 * step), np.float32)
    both = np.hstack([image, gap, rebuilt])[::step, ::step]
    file = io.BytesIO()
    Image.fromarray((both.clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"url": url, "width": both.shape[1], "height": both.shape[0]}


def mark_texts(detector: Detector, rows: pa.Table, causes: Sequence[str], masked: Set[str]) -> list[list[Pieces]]:
    """The texts of each row (N,) in which tokens that are among its causes are marked; causes (N,): as JSON."""
    columns = [one for one in detector.columns if one.kind == "sequence" and one.name not in masked]
    named = [json.loads(one) for one in causes]
    found: list[list[Pieces]] = [[] for _ in named]
    for column in columns:
        for texts, text, own in zip(found, rows[column.name].to_pylist(), named, strict=True):
            tokens = {cause["part"] for cause in own if cause["column"] == column.name and cause["share"]}
            texts.append(mark_text(text, find_tokens(text, tokens, column)))
    return found


def mark_text(text: str, spans: Sequence[tuple[int, int]]) -> Pieces:
    """A text in pieces: the spans, and what is around them; of a text without spans, its beginning."""
    pieces: Pieces = []
    done = length = 0
    for start, end in spans:
        begin = max(done, start - AROUND)
        if length > MOST_TEXT:
            break
        pieces += [("… " if begin > done else "", False), (text[begin:start], False), (text[start:end], True)]
        done, length = end, length + end - begin
    after = text[done : done + (AROUND if spans else MOST_TEXT)]
    pieces += [(after, False), (" …" if done + len(after) < len(text) else "", False)]
    return [piece for piece in pieces if piece[0]]
