"""The file of scores has the format of its name, or is refused before any work is done."""

import zipfile
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from python_calamine import CalamineWorkbook

from tasks.errors import ParamsInvalid
from tasks.on_demand.output import check_output, open_output

TABLE = pa.table({"record_id": ["=1+1", "a,b\r\nc", None, "-5"], "score": [1.5, -2.0, None, 0.1]})


def write(path: Path) -> Path:
    check_output(path)
    with open_output(path, TABLE.schema) as append:
        append(TABLE.slice(0, 2))
        append(TABLE.slice(2))
    return path


def test_a_name_that_ends_in_csv_gives_csv_without_formulas(tmp_path: Path) -> None:
    found = pd.read_csv(write(tmp_path / "flags.CSV"))
    assert found["record_id"].fillna("").tolist() == ["'=1+1", "a,b\r\nc", "", "-5"]
    assert found["score"].fillna(0).tolist() == [1.5, -2.0, 0, 0.1]


@pytest.mark.parametrize("name", ["flags.parquet", "flags.pq"])
def test_a_name_that_ends_in_parquet_gives_parquet(tmp_path: Path, name: str) -> None:
    assert pa.parquet.read_table(write(tmp_path / name)).equals(TABLE)


def test_a_name_that_ends_in_xlsx_gives_a_workbook(tmp_path: Path) -> None:
    rows = CalamineWorkbook.from_path(write(tmp_path / "flags.xlsx")).get_sheet_by_index(0).to_python()
    assert rows == [["record_id", "score"], ["=1+1", 1.5], ["a,b\r\nc", -2.0], ["", ""], ["-5", 0.1]]
    with zipfile.ZipFile(tmp_path / "flags.xlsx") as book:  # a text that looks like a formula is a text
        assert b"<f>" not in book.read("xl/worksheets/sheet1.xml")


def test_values_that_a_cell_cannot_hold_are_texts_or_cut(tmp_path: Path) -> None:
    table = pa.table(
        {"value": pa.array(["x" * 40_000]), "id": [2**60], "rate": [float("inf")], "at": [date(2026, 3, 1)]}
    )
    with open_output(tmp_path / "flags.xlsx", table.schema) as append:
        append(table)
    [_, row] = CalamineWorkbook.from_path(tmp_path / "flags.xlsx").get_sheet_by_index(0).to_python()
    assert row[0] == "x" * 32_767
    assert row[1] == str(2**60)
    assert row[3] == "2026-03-01"


def test_more_rows_than_a_sheet_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.on_demand.output.MOST_EXCEL_ROWS", 4)
    with pytest.raises(ParamsInvalid, match="more rows than an Excel sheet can hold"):
        write(tmp_path / "flags.xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flags.txt", "flags", "nowhere/flags.csv", "folder.csv"])
def test_what_cannot_be_written_is_refused_first(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ParamsInvalid, match="nothing was done"):
        check_output(tmp_path / name)


def test_a_file_that_is_not_complete_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / "flags.csv", TABLE.schema) as append:
        append(TABLE)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
