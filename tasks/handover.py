"""A fitted bundle on its way from the machine that trained it to the one that asked: through the lake, file by file.

It lies beside the clean rows it was fitted on, under the run that made it, where no manifest names it: should nobody
fetch it, prune takes it as an orphan. Whoever takes it checks every byte.
"""

from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from models.bundle import FILES, MANIFEST, read_bundle, write_bundle
from tasks.site import Site, writing


def send_bundle(site: Site, cutoff: date, run_id: str) -> None:
    """Put the bundle that this machine has just fitted into the lake."""
    folder = site.fitted(cutoff)
    read_bundle(folder)
    for name in (*FILES, MANIFEST):
        site.lake.replace(_path(site, cutoff, run_id, name), (folder / name).read_bytes())


def take_bundle(site: Site, cutoff: date, run_id: str) -> Path:
    """Fetch the bundle that a run has sent, as if it had been fitted here. Raises BundleInvalid, ServiceUnreachable."""
    folder = site.fitted(cutoff)
    with writing(folder), TemporaryDirectory() as arriving:
        for name in (*FILES, MANIFEST):
            (Path(arriving) / name).write_bytes(site.lake.read(_path(site, cutoff, run_id, name)))
        write_bundle(folder, read_bundle(Path(arriving)))
    for name in (*FILES, MANIFEST):
        site.lake.remove(_path(site, cutoff, run_id, name))
    return folder


def _path(site: Site, cutoff: date, run_id: str, name: str) -> str:
    return f"{site.lake.partition('clean', site.detector, cutoff)}/fitted-{run_id}/{name}"
