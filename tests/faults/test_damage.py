"""Damaged files and too little memory: found on reading, named in the error, and fixed by restoring the file."""

import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from steps import NightSteps
from toy import make_rows

from flows.config.setup import Setup
from models.errors import MemoryExhausted
from models.fitting import watch_memory
from tasks.errors import BundleInvalid, SourceInvalid
from tasks.filter import read_training_set
from tasks.ingest import ingest_arrivals
from tasks.rows.params import EventTime, IngestParams
from tasks.sources.files import FilesSource
from tasks.stores.lake import Manifest

DAY = date(2026, 4, 3)


def spoil(path: Path) -> bytes:
    """Zero the pages of the middle row group's first column; returns the file's original bytes."""
    whole = path.read_bytes()
    groups = pq.ParquetFile(path).metadata
    start = groups.row_group(groups.num_row_groups // 2).column(0).data_page_offset
    path.write_bytes(whole[:start] + bytes(200) + whole[start + 200 :])
    return whole


def test_a_source_damaged_in_the_middle_lands_nothing_and_all_rows_once_fixed(setup: Setup) -> None:
    site, path = setup.site, Path(setup.site.sources) / "middle.parquet"
    rows = make_rows(DAY).assign(fraud=0)
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path, row_group_size=100)
    params = IngestParams(
        source=FilesSource(kind="files", path="*.parquet"), record_id="order_id",
        event_time=EventTime(column="placed_at"),
    )  # fmt: skip
    before, whole = site.lake.files(""), spoil(path)
    with pytest.raises(SourceInvalid, match=r"middle.parquet[\s\S]*nothing of it has landed"):
        ingest_arrivals(site, params, setup.window(last=DAY))
    assert site.lake.files("") == before
    path.write_bytes(whole)
    assert ingest_arrivals(site, params, setup.window(last=DAY)).rows == len(rows)


@pytest.mark.parametrize(("zone", "step"), [("landing", "validate"), ("validated", "score")])
def test_a_part_damaged_in_the_middle_stops_the_step_that_reads_it(setup: Setup, zone: str, step: str) -> None:
    night, site = NightSteps(setup), setup.site
    for name in night.steps:
        if name == step:
            manifest: Manifest = site.lake.read_manifest(f"{zone}/orders/batch_date={DAY}/manifest.json")
            path = Path(site.lake.full(manifest.parts[0].path))
            before, whole = site.lake.files(""), spoil(path)
            with pytest.raises(SourceInvalid, match="missing or damaged") as refused:
                night.run(name, site)
            assert path.name in str(refused.value)
            assert site.lake.files("") == before
            path.write_bytes(whole)
        night.run(name, site)


def test_a_damaged_local_bundle_is_refused_until_its_folder_is_deleted(setup: Setup) -> None:
    version = setup.site.registry.get_champion()
    weights = setup.site.registry.fetch_bundle(version) / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"!")
    with pytest.raises(BundleInvalid, match="was altered"):
        setup.site.registry.fetch_bundle(version)
    shutil.rmtree(weights.parent)
    assert (setup.site.registry.fetch_bundle(version) / "weights.safetensors").read_bytes() == whole


FIT_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from steps import TrainingSteps, load
from toy import CUTOFF
from tasks.errors import MemoryExhausted
from tasks.filter import read_training_set
import torch
steps = TrainingSteps(load(Path(sys.argv[1])))
site, params = steps.setup.site, steps.setup.configured.detector.train
from tasks.train import fit_bundle
wide = params.networks[0].model_copy(update={"layers": (6000, 6000, 6000)})
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), used + (300 << 20)))
try:
    rows = read_training_set(site.lake, "orders", CUTOFF)
    fit_bundle(site, rows, params.model_copy(update={"networks": (wide,)}), {})
except MemoryExhausted as error:
    print(error)
"""


def test_a_fit_that_runs_out_of_memory_says_so_and_keeps_the_old_bundle(setup: Setup) -> None:
    [cutoff] = setup.site.lake.dates("clean", "orders")
    rows, fitted = read_training_set(setup.site.lake, "orders", cutoff), setup.site.fitted(cutoff)
    before = sorted((path.name, path.read_bytes()) for path in fitted.iterdir())
    command = [sys.executable, "-c", FIT_IN_LITTLE_MEMORY, str(Path(setup.site.sources).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert f"a fit on {rows.rows['fit']:,} rows" in done.stdout, done.stderr
    assert "to do: train on fewer days" in done.stdout
    assert sorted((path.name, path.read_bytes()) for path in fitted.iterdir()) == before


def _environment() -> dict[str, str]:
    import os

    root = Path(__file__).parent.parent.parent
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests' / 'support'}"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "on the GPU"),
        (RuntimeError("shapes do not match"), "shapes"),
        (MemoryError(), "not enough memory to fit"),
    ],
)
def test_every_kind_of_memory_exhaustion_gives_the_same_error(error: Exception, expected: str) -> None:
    with pytest.raises(RuntimeError if expected == "shapes" else MemoryExhausted, match=expected), watch_memory(7):
        raise error
