"""A detector's files in the lake: manifests, the files they name, and files that no manifest names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import get_args

from tasks.stores.files import UNFINISHED
from tasks.stores.lake import Lake, Manifest, Zone

ZONES: tuple[Zone, ...] = get_args(Zone)


@dataclass(frozen=True)
class Inventory:
    """Manifests by path, and file sizes in bytes by path: of named files, manifests included, and of unnamed ones."""

    manifests: Mapping[str, Manifest]
    named: Mapping[str, int]
    unnamed: Mapping[str, int]


def take_inventory(lake: Lake, detector: str) -> Inventory:
    """List every file of a detector.

    Files are listed before manifests are read, so that a file committed in the meantime counts as named.
    """
    files = {path: size for zone in ZONES for path, size in lake.files(f"{zone}/{detector}").items()}
    manifests = {path: lake.read_manifest(path) for path in lake.manifests(detector=detector)}
    named = {name for path, manifest in manifests.items() for name in list_named(path, manifest, files)}
    return Inventory(
        manifests,
        {path: size for path, size in files.items() if path in named},
        {path: size for path, size in files.items() if path not in named},
    )


def list_named(path: str, manifest: Manifest, files: Mapping[str, int]) -> Iterator[str]:
    """The files that belong to the manifest at `path`: itself, its parts, and the flags and groups of scores.

    Under `inputs=KEY/` all files belong to the manifest, except unfinished ones.
    """
    yield path
    yield from (part.path for part in manifest.parts)
    yield from list_results(manifest, files)
    if manifest.inputs:
        folder = f"{PurePosixPath(path).parent}/"
        yield from (name for name in files if name.startswith(folder) and not name.endswith(UNFINISHED))


def list_results(manifest: Manifest, files: Mapping[str, int]) -> list[str]:
    """The flags and groups that belong to the scores of a manifest. Before schema 0004 it named only the flags."""
    if not (flags := manifest.facts.get("flags")):
        return []
    groups = manifest.facts.get("groups", str(PurePosixPath(flags).with_name("groups.parquet")))
    return [name for name in (flags, groups) if name in files]
