import base64
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.image import imread

from models.columns import Column, Tokens
from models.detector import Detector, ModelParams, fit_detector
from models.params import AutoencoderParams, FitParams
from tasks.pages import pictures
from tasks.pages.sketch import MOST_TEXT, draw_pair, keep_first, mark_text, project, sketch_night
from tasks.rows.columns import to_records
from tasks.sources.images import make_field, to_arrow

COLUMNS = (
    Column("photo", "image", shape=(6, 4)),
    Column("words", "sequence", ("a", "b", "c"), tokens=Tokens(words=5)),
)


def make_rows(n: int = 40) -> pa.Table:
    rng = np.random.default_rng(1)
    photos = to_arrow(rng.integers(0, 256, (n, 6, 4)).astype(np.uint8))
    words = [" ".join(rng.choice(list("abc"), 4)) for _ in range(n)]
    schema = pa.schema(
        [pa.field("record_id", pa.string()), make_field("photo", (6, 4)), pa.field("words", pa.string())]
    )
    return pa.table([[f"r{i}" for i in range(n)], photos, words], schema=schema)


@pytest.fixture(scope="module")
def detector() -> Detector:
    params = ModelParams(networks=(AutoencoderParams(layers=(4, 2, 4)),), fit=FitParams(epochs=2))
    records, _ = to_records(make_rows(), COLUMNS)
    return fit_detector(COLUMNS, records, records, params, torch.device("cpu"))


def sketch(detector: Detector, masked: set[str] = set()):  # noqa: B006 - not changed
    cause = [{"column": "words", "part": "b", "share": 1.0}, {"column": "photo", "part": "rows 0-5", "share": 0.5}]
    is_flagged = np.arange(40) < 3
    return sketch_night(detector, make_rows(), is_flagged, {"r1": json.dumps(cause), "gone": "[]"}, masked)


def test_flags_have_their_images_and_their_texts_and_the_map_has_all_rows(detector):
    found = sketch(detector)
    assert (found.latent["rows"], found.latent["flags"]) == (40, 3)
    assert found.images.keys() == found.texts.keys() == {"r1"}
    [image], [text] = found.images["r1"], found.texts["r1"]
    assert (image["column"], image["width"], image["height"]) == ("photo", 10, 6)
    whole = make_rows()["words"][1].as_py()
    assert "".join(piece for piece, _ in text) == whole
    assert {piece for piece, is_cause in text if is_cause} <= {"b", "b b", "b b b", "b b b b"}
    assert sum(piece.count("b") for piece, is_cause in text if is_cause) == whole.count("b")


def test_the_picture_holds_the_image_and_beside_it_what_the_network_made_of_it(detector):
    [image] = sketch(detector).images["r1"]
    pixels = imread(io.BytesIO(base64.b64decode(image["url"].removeprefix("data:image/png;base64,"))))
    raw = np.frombuffer(make_rows()["photo"][1].as_py(), np.uint8).reshape(6, 4)
    assert np.allclose(pixels[:, :4], raw / 255, atol=0.003)
    records, _ = to_records(make_rows(), COLUMNS)
    with torch.inference_mode():
        rebuilt = detector.networks[0](detector.encoder(records))[1, :24].reshape(6, 4).numpy()
    assert np.allclose(pixels[:, 6:], rebuilt.clip(0, 1), atol=0.003)


def test_pixels_and_numbers_of_tokens_are_never_expected_below_zero(detector):
    explained = detector.explain(to_records(make_rows(), COLUMNS)[0])
    assert explained.expected.min() == 0


def test_masked_columns_are_not_shown(detector):
    found = sketch(detector, {"photo", "words"})
    assert (found.images, found.texts) == ({"r1": []}, {"r1": []})


def test_a_page_has_the_images_of_as_many_flags_as_it_can_hold(monkeypatch):
    monkeypatch.setattr("tasks.pages.sketch.MOST_BYTES", 25)
    images = {record: [{"url": "0123456789"}] for record in "abc"}
    assert [*keep_first(images, ["c", "gone", "a", "b"])] == ["c", "a"]


def test_a_night_without_rows_has_no_map(detector):
    assert sketch_night(detector, make_rows(0), np.zeros(0, bool), {}, set()).latent is None


def test_the_projection_agrees_with_scikit_learn_but_for_the_signs():
    latent = np.random.default_rng(3).normal(size=(50, 4)) @ np.diag([3, 2, 1, 0.5])
    assert np.allclose(np.abs(project(latent)), np.abs(pictures.project(latent)))
    assert project(latent[:, :1]).shape == (50, 2)
    assert project(latent[:1]).tolist() == [[0, 0]]


def test_large_images_are_thinned_out():
    found = draw_pair(np.zeros((300, 200), np.float32), np.ones((300, 200), np.float32))
    assert (found["width"], found["height"]) == (82, 60)
    assert len(found["url"]) < 400


def test_of_a_long_text_what_is_around_the_causes_is_shown():
    text = "x" * 100 + " HERE " + "y" * 1000
    assert mark_text(text, [(101, 105)]) == [
        ("… ", False), ("x" * 39 + " ", False), ("HERE", True), (" " + "y" * 39, False), (" …", False),
    ]  # fmt: skip
    assert mark_text("short", []) == [("short", False)]
    assert mark_text(text, []) == [(text[:MOST_TEXT], False), (" …", False)]
    many = mark_text("ab " * 1000, [(n, n + 2) for n in range(0, 3000, 3)])
    assert len("".join(piece for piece, _ in many)) < MOST_TEXT + 60
