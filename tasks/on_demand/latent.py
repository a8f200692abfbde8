"""Where rows lie in the champion's latent spaces: to search, cluster or draw them elsewhere. Publishes nothing.

In: a validated batch, or a loose file. Out: one row per good row, in order: record_id, and float64 latent_0, latent_1
and so on, of the first network, then of the next. Memory holds one slice.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from models.detector import Detector
from tasks.errors import BatchRejected
from tasks.on_demand.loose import check_rows, list_arrivals, mark_good
from tasks.on_demand.output import check_output, open_output
from tasks.policy import progress_of
from tasks.rows.columns import fits, to_records
from tasks.rows.contract import Contract
from tasks.rows.derive import History
from tasks.rows.judge import load_detector
from tasks.rows.params import DetectorParams
from tasks.stores.site import Site


@dataclass(frozen=True)
class Latent:
    """The latent vectors of a batch or a file. rows = encoded + bad rows, which `reasons` counts.

    networks: the width of each network's latent space. records: the first ones.
    """

    detector: str
    model: str
    version: int
    batch_date: date | None
    networks: tuple[int, ...]
    rows: int
    encoded: int
    reasons: dict[str, int]
    records: list[dict[str, Any]]


def encode_latent(
    site: Site,
    contract: Contract,
    params: DetectorParams,
    day: date | None,
    source: str | None,
    most: int | None,
    output: Path | None,
) -> Latent:
    """Encode a file or, without `source`, a validated batch, by default the newest published one.

    `output` gets all vectors, the result the first `most`. Raises BatchMissing, BatchRejected, SourceInvalid.
    """
    if output:
        check_output(output)
    champion = site.registry.get_champion()
    champion.check_types(contract.types | params.history)
    detector = load_detector(site.lake, site.detector, site.registry.fetch_bundle(champion))
    if source is None:
        day = day or site.warehouse.get_nights(site.detector)[-1].batch_date
        slices = _read_batch(site, detector, day)
    else:
        slices = _read_file(site, contract, params, source)
    names = [f"latent_{i}" for i in range(sum(detector.latent_widths))]
    schema = pa.schema([("record_id", pa.string()), *((name, pa.float64()) for name in names)])
    kept, held, rows, encoded = [schema.empty_table()], 0, 0, 0
    reasons: Counter[str] = Counter()
    with ExitStack() as stack:
        write = stack.enter_context(open_output(output, schema)) if output else None
        for good, bad in slices:
            table = _encode_slice(detector, good, schema)
            reasons.update(bad)
            rows, encoded = rows + len(bad) + table.num_rows, encoded + table.num_rows
            if write:
                write(table)
            kept.append(table if most is None else table.slice(0, most - held))
            held += kept[-1].num_rows
    return Latent(
        site.detector,
        champion.name,
        champion.version,
        day,
        detector.latent_widths,
        rows,
        encoded,
        dict(reasons.most_common()),
        pa.concat_tables(kept).to_pylist(),
    )


def _read_batch(site: Site, detector: Detector, day: date) -> Iterator[tuple[pa.Table, list[str]]]:
    """A validated batch's rows, slice by slice, none of them bad."""
    validated = site.lake.get("validated", site.detector, day)
    report, done = progress_of(f"encode {day}"), 0
    for part in validated.parts:
        schema = site.lake.schema(part)
        if not fits(schema, detector.columns):
            raise BatchRejected(
                f"The rows of {day} lack columns that the champion reads.",
                where=f"validated rows of {site.detector}",
                got=f"columns {', '.join(schema.names)}",
                expected=f"columns {', '.join(column.name for column in detector.columns)}",
                todo=f"nightjar score {site.detector} --date {day} validates them again",
            )
        for rows in site.lake.slices(part, ["record_id", *(column.name for column in detector.columns)]):
            yield rows, []
            done += rows.num_rows
            report(done, validated.rows)


def _read_file(
    site: Site, contract: Contract, params: DetectorParams, source: str
) -> Iterator[tuple[pa.Table, list[str]]]:
    """A file's good rows, slice by slice, and the reasons of the bad ones."""
    arrivals = list_arrivals(site, params.ingest, source)
    history = History(site, params.enrich) if params.enrich else None
    for rows, reasons in check_rows(contract, params.ingest, arrivals, site.zone, history):
        good = mark_good(reasons)
        yield rows.filter(pa.array(good)), reasons[~good].tolist()


def _encode_slice(detector: Detector, rows: pa.Table, schema: pa.Schema) -> pa.Table:
    if not rows.num_rows:
        return schema.empty_table()
    records, _ = to_records(rows, detector.columns)
    points = np.concatenate(detector.encode_all(records), axis=1)  # (N, Z of all networks)
    return pa.table([rows["record_id"].cast(pa.string()), *points.T], schema=schema)
