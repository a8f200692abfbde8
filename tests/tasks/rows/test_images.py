from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import ValidationError

from models.columns import Column
from tasks.errors import BatchRejected, ParamsInvalid, SourceInvalid
from tasks.ingest import ingest_arrivals
from tasks.register import make_example
from tasks.rows.columns import describe_columns, to_records
from tasks.rows.contract import Contract
from tasks.rows.images import DRAWN, draw_images, read_pixels
from tasks.rows.params import ColumnsParams, EventTime, IngestParams, ValidateParams
from tasks.sources import images
from tasks.sources.files import FilesSource
from tasks.sources.images import make_field, read_shape, to_arrow
from tasks.sources.kinds import Window
from tasks.validate import validate_batches

DAY, LATER = date(2026, 1, 1), datetime(2100, 1, 1, tzinfo=UTC)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 2, 3)).astype(np.uint8)
PHOTO = Column("photo", "image", shape=(2, 3))
CONTRACT = {"columns": {"photo": {"type": "image", "shape": [2, 3]}, "digit": {"type": "int"}}}


def ingest(site, **arrays):
    np.savez_compressed(f"{site.sources}/digits.npz", **arrays)
    dealt = EventTime(rows_per_day=4, first_date=DAY)
    params = IngestParams(source=FilesSource(kind="files", path="digits.npz"), event_time=dealt)
    return ingest_arrivals(site, params, Window(date.min, DAY, LATER))


def read_rows(site, zone, *days):
    parts = [part for day in days for part in site.lake.get(zone, "toy", day).parts]
    return pa.concat_tables([s for part in parts for s in site.lake.slices(part)])


def test_an_archive_lands_and_validates_slice_by_slice_with_its_pixels_and_its_shape(site, monkeypatch):
    monkeypatch.setattr(images, "SLICE_ROWS", 2)
    done = ingest(site, photo=IMAGES, digit=np.arange(5))
    assert (done.rows, len(done.dates)) == (5, 2)
    validations = validate_batches(site, Contract.model_validate(CONTRACT), done.dates, ValidateParams())
    assert [(v.validated, v.failures, v.warnings) for v in validations] == [(4, (), ()), (1, (), ())]
    rows = read_rows(site, "validated", *done.dates)
    assert rows["digit"].to_pylist() == [0, 1, 2, 3, 4]
    [column] = describe_columns(ColumnsParams(image=("photo",)), rows)
    assert column == PHOTO
    records, unseen = to_records(rows, [column])
    assert np.array_equal(records.pixels, IMAGES.reshape(5, 6)) and not unseen.any()


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({"photo": IMAGES.reshape(5, 6)}, "photo uint8 \\(5, 6\\)"),
        ({"photo": IMAGES / 255}, "photo float64"),
        ({"photo": IMAGES[..., None]}, "\\(5, 2, 3, 1\\)"),
        ({"photo": IMAGES, "digit": np.arange(4)}, "digit int64 \\(4,\\)"),
        ({"digit": np.arange(4)}, "digit int64"),
        ({"photo": np.asfortranarray(IMAGES)}, "column-major order"),
        ({"photo": IMAGES, "digit": np.array([None] * 5)}, "digit object"),
    ],
)
def test_an_archive_of_the_wrong_shape_or_type_is_refused_and_lands_nothing(site, arrays, got):
    with pytest.raises(SourceInvalid, match=f"digits.npz(.|\n)*{got}"):
        ingest(site, **arrays)
    assert not site.lake.dates("landing", "toy")


def test_a_truncated_archive_is_refused(site):
    ingest(site, photo=IMAGES)
    path = Path(site.sources) / "digits.npz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    params = IngestParams(
        source=FilesSource(kind="files", path="digits.npz"), event_time=EventTime(rows_per_day=4, first_date=DAY)
    )
    with pytest.raises(SourceInvalid, match="truncated or damaged"):
        ingest_arrivals(site, params, Window(date.min, DAY, LATER))


@pytest.mark.parametrize("shape", [(5, 3, 2), (5, 4, 4)])
def test_images_of_another_shape_than_the_contracts_are_rejected_by_name_and_shape(site, shape):
    done = ingest(site, photo=np.zeros(shape, np.uint8), digit=np.arange(5))
    first, _ = validate_batches(site, Contract.model_validate(CONTRACT), done.dates, ValidateParams())
    expected = f"photo has images of {shape[1]} x {shape[2]} pixels, expected images of 2 x 3 pixels"
    assert expected in first.failures


def test_a_missing_image_is_refused_and_another_size_too():
    table = pa.table([pa.array([b"123456", None], pa.binary(6))], schema=pa.schema([make_field("photo", (2, 3))]))
    with pytest.raises(BatchRejected, match=r"column photo(.|\n)*1 of 2 rows"):
        to_records(table, [PHOTO])
    with pytest.raises(BatchRejected, match=r"wrong size(.|\n)*2 rows of 3 pixels"):
        read_pixels(pa.chunked_array([[b"12345"]]), PHOTO)


def test_pixels_of_a_slice_of_a_column_are_those_of_its_rows():
    column = pa.chunked_array([to_arrow(IMAGES[:4]), to_arrow(IMAGES[4:])]).slice(1, 4)
    assert np.array_equal(read_pixels(column, PHOTO), IMAGES[1:].reshape(4, 6))
    assert read_pixels(column.slice(0, 0), PHOTO).shape == (0, 6)


def test_a_column_without_a_shape_is_not_an_image():
    assert read_shape(pa.field("photo", pa.binary(6))) is None
    with pytest.raises(ParamsInvalid, match="column photo"):
        describe_columns(ColumnsParams(image=("photo",)), pa.table({"photo": ["x"]}))


def test_the_example_of_an_image_is_black_and_reads_back_as_served():
    example = make_example((PHOTO,))
    records, _ = to_records(pa.Table.from_pandas(pd.DataFrame(example), preserve_index=False), [PHOTO])
    assert records.pixels.tolist() == [[0] * 6]


@pytest.mark.parametrize(
    ("columns", "expectation", "words"),
    [
        ({"photo": {"type": "image"}}, None, "needs a shape"),
        ({"photo": {"type": "int", "shape": [2, 3]}}, None, "needs a shape"),
        ({"photo": {"type": "image", "shape": [0, 3]}}, None, "greater than 0"),
        ({"photo": {"type": "image", "shape": [2, 3]}}, "expect_column_values_to_be_unique", "depends on other rows"),
        ({"photo": {"type": "image", "shape": [2, 3]}}, "expect_column_values_to_be_in_set", "cannot judge an image"),
    ],
)
def test_a_contract_that_asks_the_impossible_of_an_image_is_refused(columns, expectation, words):
    row = {"level": "row", "type": expectation, "kwargs": {"column": "photo"}}
    with pytest.raises(ValidationError, match=words):
        Contract.model_validate({"columns": columns, "expectations": (row,) if expectation else ()})


@pytest.mark.parametrize(
    ("limits", "got"),
    [({"ROW_BYTES": 13}, "14 bytes per row"), ({"SAFE_BYTES": 1000, "MAX_RATIO": 2}, "1,400 in all, from a file of")],
)
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(site, monkeypatch, limits, got):
    for name, value in limits.items():
        monkeypatch.setattr(images, name, value)
    with pytest.raises(SourceInvalid, match=f"too large when unpacked(.|\n)*{got}"):
        ingest(site, photo=np.zeros((100, 2, 3), np.uint8), digit=np.zeros(100))
    assert site.lake.dates("landing", "toy") == []


def test_a_slice_of_large_images_has_fewer_rows(site, monkeypatch):
    monkeypatch.setattr(images, "SLICE_BYTES", 12)
    np.savez(f"{site.sources}/digits.npz", photo=IMAGES)
    with Path(f"{site.sources}/digits.npz").open("rb") as file:
        slices = list(images.read_images(file, "digits.npz"))
    assert [table.num_rows for table in slices] == [2, 2, 1]
    assert b"".join(pa.concat_tables(slices)["photo"].to_pylist()) == IMAGES.tobytes()


def test_noise_is_uniform_and_shapes_are_white_outlines_of_their_own() -> None:
    drawn = {kind: draw_images(kind, 200, (28, 28), np.random.default_rng(1)) for kind in DRAWN}
    assert all(found.shape == (200, 28, 28) and found.dtype == np.uint8 for found in drawn.values())
    assert abs(drawn["noise"].mean() - 127.5) < 2 and len(np.unique(drawn["noise"])) == 256
    assert all(set(np.unique(drawn[kind])) == {0, 255} for kind in DRAWN if kind != "noise")
    white = {kind: (found > 0).mean(axis=(1, 2)) for kind, found in drawn.items()}
    assert all((share > 0).all() for share in white.values())
    # A cross is two of its lines, which share only their middle; the same seed gives the same places.
    assert (drawn["crosses"] >= drawn["lines"]).all() and white["crosses"].mean() > 1.7 * white["lines"].mean()
    again = draw_images("circles", 200, (28, 28), np.random.default_rng(1))
    assert np.array_equal(again, drawn["circles"])
    assert draw_images("rectangles", 3, (8, 12), np.random.default_rng(2)).max(axis=(1, 2)).tolist() == [255] * 3
