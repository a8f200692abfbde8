"""Bundles, spoilt: altered bytes are always refused; files that lie in accord fit together or are refused as well."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from fuzzing import cases, spoilt, spoilt_bytes
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import make_tiny_detector, make_tiny_records

from models.bundle import CALIBRATION, FILES, HEADER, MANIFEST, WEIGHTS, read_bundle, write_bundle
from models.detector import Detector
from tasks.errors import BundleInvalid, NightjarError

RECORDS = make_tiny_records(3)


def save() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_detector().save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


BUNDLE = save()


def load(contents: dict[str, bytes]) -> Detector | None:
    """The detector of some files with a manifest in accord, or None where they are refused."""
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder), contents)
        try:
            return Detector.load(Path(folder))
        except BundleInvalid as error:
            assert "to do" in str(error)
            return None


@cases(4)
@given(st.sampled_from([*FILES, MANIFEST]), st.data())
def test_altered_bytes_are_refused(name: str, data: st.DataObject) -> None:
    content = data.draw(spoilt_bytes(BUNDLE[name]))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for file, whole in BUNDLE.items():
            (folder / file).write_bytes(content if file == name else whole)
        try:
            assert read_bundle(folder) == {file: BUNDLE[file] for file in FILES}
        except BundleInvalid:
            return
    is_same = content == BUNDLE[name] or (name == MANIFEST and json.loads(content) == json.loads(BUNDLE[name]))
    assert is_same


@cases(1)
@given(spoilt(json.loads(BUNDLE[HEADER])))
@example(json.loads(BUNDLE[HEADER]) | {"columns": []})  # was an error of the encoder
def test_headers_in_accord_with_their_hash(header: object) -> None:
    detector = load(BUNDLE | {HEADER: json.dumps(header, default=str).encode()})
    if detector is None:
        return
    with contextlib.suppress(NightjarError):  # other columns than these records have
        assert detector.score(RECORDS).shape == (3,)


@cases(1)
@given(st.sampled_from([WEIGHTS, CALIBRATION]), st.data())
def test_arrays_in_accord_with_their_hash(name: str, data: st.DataObject) -> None:
    detector = load(BUNDLE | {name: data.draw(spoilt_bytes(BUNDLE[name]))})
    if detector is not None:
        scores = detector.score(RECORDS)
        assert scores.shape == (3,)
        assert np.isfinite(detector.rank(scores)).all()
