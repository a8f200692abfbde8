"""The folder in which a detector is saved: three files of plain data, and a manifest of their hashes, checked on load.

In and out: the bytes of each file by name. Nothing here can run code: no pickle, no class names. The content hash
covers every byte and no time, so equal detectors have equal hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from models.errors import BundleInvalid
from models.params import Section

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HEADER, WEIGHTS, CALIBRATION = "detector.json", "weights.safetensors", "calibration.safetensors"
FILES = (HEADER, WEIGHTS, CALIBRATION)
TODO = "move the folder away: a copy of the registry is downloaded again; or train again; never edit a bundle"


class BundleFile(Section):
    """One file of a bundle: hexadecimal SHA-256 and size in bytes."""

    sha256: str
    size: int


class BundleManifest(Section):
    """Written last and read first; a folder without it is not a bundle."""

    format_version: int
    content_hash: str
    files: dict[str, BundleFile]


def write_bundle(folder: Path, contents: Mapping[str, bytes]) -> str:
    """Write the files, then the manifest; return the content hash. An existing bundle is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in FILES:
        (folder / name).write_bytes(contents[name])
    entries = {name: _describe(contents[name]) for name in FILES}
    manifest = BundleManifest(format_version=FORMAT_VERSION, content_hash=_hash_entries(entries), files=entries)
    (folder / MANIFEST).write_bytes(dump_json(manifest.model_dump()))
    return manifest.content_hash


def read_bundle(folder: Path) -> dict[str, bytes]:
    """Read every file of a bundle and check it against the manifest; raises BundleInvalid."""
    manifest = read_bundle_manifest(folder)
    _check_names(folder, manifest)
    contents = {}
    for name in FILES:
        path, entry = folder / name, manifest.files[name]
        contents[name] = _read(path)
        got = _describe(contents[name])
        if got.size != entry.size:
            cut = "truncated" if got.size < entry.size else "too long"
            raise _invalid(f"is {cut}", path, f"{got.size} bytes", f"{entry.size} bytes")
        if got.sha256 != entry.sha256:
            raise _invalid("was altered", path, f"sha256 {got.sha256}", f"sha256 {entry.sha256}")
    content_hash = _hash_entries(manifest.files)
    if content_hash != manifest.content_hash:
        raise _invalid("was altered", folder / MANIFEST, f"hash {manifest.content_hash}", f"hash {content_hash}")
    return contents


def check_bundle(folder: Path, content_hash: str) -> None:
    """Check every byte, and that the bundle has this content hash; raises BundleInvalid."""
    read_bundle(folder)
    if (found := read_bundle_manifest(folder).content_hash) != content_hash:
        raise _invalid("is a different bundle", folder, f"content hash {found}", f"content hash {content_hash}")


def read_bundle_manifest(folder: Path) -> BundleManifest:
    """Read only the manifest, for example for the content hash; raises BundleInvalid."""
    path = folder / MANIFEST
    raw = _read(path)
    try:
        version = json.loads(raw)["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid("is not a manifest", path, f"{len(raw)} bytes", "JSON with a format_version") from error
    if version != FORMAT_VERSION:
        raise BundleInvalid(
            "This version of Nightjar cannot read the bundle's format.",
            where=str(path),
            got=f"format_version {version!r}",
            expected=f"format_version {FORMAT_VERSION}",
            todo="install the version of Nightjar that wrote it, or train the detector again",
        )
    try:
        return BundleManifest.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid("is not a manifest", path, str(error), "version, content hash and files") from error


def dump_json(document: object) -> bytes:
    """Write JSON so that equal documents have equal bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _check_names(folder: Path, manifest: BundleManifest) -> None:
    # The manifest never decides which files are opened: unknown names are refused, so no path can lead outside.
    for where, names in (
        (folder / MANIFEST, manifest.files),
        (folder, {p.name for p in folder.iterdir()} - {MANIFEST}),
    ):
        if set(names) != set(FILES):
            raise _invalid("does not have the files of a bundle", where, ", ".join(sorted(names)), ", ".join(FILES))


def _read(path: Path) -> bytes:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise _invalid("is not a plain file", path, "a link, a folder or a pipe", "a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _invalid("cannot be read", path, str(error), f"a bundle with {MANIFEST}, {', '.join(FILES)}") from error


def _describe(content: bytes) -> BundleFile:
    return BundleFile(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _hash_entries(entries: Mapping[str, BundleFile]) -> str:
    document = {
        "format_version": FORMAT_VERSION,
        "files": {name: entry.model_dump() for name, entry in entries.items()},
    }
    return hashlib.sha256(dump_json(document)).hexdigest()


def _invalid(what: str, path: Path, got: str, expected: str) -> BundleInvalid:
    return BundleInvalid(f"{path.name} {what}.", where=str(path), got=got, expected=expected, todo=TODO)
