import hashlib
import json
from pathlib import Path

import pytest

from models.bundle import CALIBRATION, FILES, HEADER, MANIFEST, WEIGHTS, read_bundle, read_bundle_manifest, write_bundle
from models.errors import BundleInvalid

CONTENTS = {HEADER: b"{}", WEIGHTS: b"weights", CALIBRATION: b"scores"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", CONTENTS)
    return tmp_path / "bundle"


def test_what_was_written_is_read_and_equal_contents_have_equal_hashes(folder: Path, tmp_path: Path) -> None:
    assert read_bundle(folder) == CONTENTS
    again = write_bundle(tmp_path / "again", CONTENTS)
    assert again == read_bundle_manifest(folder).content_hash
    assert again != write_bundle(tmp_path / "other", {**CONTENTS, WEIGHTS: b"Weights"})


def test_the_manifest_lists_the_hash_and_size_of_every_file(folder: Path) -> None:
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    expected = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in CONTENTS.items()}
    assert listed == expected


def test_writing_again_replaces_the_bundle(folder: Path) -> None:
    write_bundle(folder, {**CONTENTS, WEIGHTS: b"new"})
    assert read_bundle(folder)[WEIGHTS] == b"new"


@pytest.mark.parametrize("name", FILES)
def test_altered_truncated_and_missing_files_are_refused(folder: Path, name: str) -> None:
    path, content = folder / name, CONTENTS[name]
    for bad, what in ((bytes([content[0] ^ 1]) + content[1:], "was altered"), (content[:-1], "is truncated")):
        path.write_bytes(bad)
        with pytest.raises(BundleInvalid, match=f"(?s){name} {what}.*to do"):
            read_bundle(folder)
    path.unlink()
    with pytest.raises(BundleInvalid, match="files of a bundle"):
        read_bundle(folder)


def test_a_file_that_does_not_belong_is_refused(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"code")
    with pytest.raises(BundleInvalid, match=r"model\.pkl"):
        read_bundle(folder)


def test_a_manifest_that_names_other_files_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../secret"] = manifest["files"].pop(WEIGHTS)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match=r"\.\./secret"):
        read_bundle(folder)


def test_an_altered_content_hash_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "content_hash": "0" * 64}))
    with pytest.raises(BundleInvalid, match="was altered"):
        read_bundle(folder)


def test_an_unknown_format_is_refused_before_anything_else(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format_version": 99, "new": true}')
    with pytest.raises(BundleInvalid, match="format_version 99"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"format_version": 1}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleInvalid, match="is not a manifest"):
        read_bundle(folder)


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleInvalid, match="cannot be read"):
            read_bundle(folder)


def test_a_write_that_was_cut_off_leaves_no_bundle(folder: Path) -> None:
    with pytest.raises(KeyError):
        write_bundle(folder, {HEADER: b"new"})
    with pytest.raises(BundleInvalid):
        read_bundle(folder)
