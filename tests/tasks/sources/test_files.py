"""What a file is and how it is written is found in its bytes; rows are read or refused by the name of the cause."""

import bz2
import csv
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.errors import NightjarError, ServiceUnreachable, SourceInvalid
from tasks.sources.arrival import UNPARSED
from tasks.sources.files import FilesSource, find_settings, list_files

TEXT = "id,name,amount\na,Zoë,1.5\nb,Łukasz,2\nc,,3\n"
ROWS = [("a", "Zoë", "1.5"), ("b", "Łukasz", "2"), ("c", None, "3")]
SIX = "".join(f"{number},x,1\n" for number in range(6))


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def as_parquet(text: str = TEXT) -> bytes:
    header, *rows = csv.reader(io.StringIO(text))
    sink = io.BytesIO()
    columns = {name: [row[place] or None for row in rows] for place, name in enumerate(header)}
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def read(folder: Path, content: bytes, name: str = "rows", **settings: object) -> list[tuple[str | None, ...]]:
    (folder / name).write_bytes(content)
    source = FilesSource(kind="files", path=name, **settings)  # type: ignore[arg-type]
    return rows_of(source, folder)


def rows_of(source: FilesSource, folder: Path) -> list[tuple[str | None, ...]]:
    tables = [table for arrival in list_files(source, str(folder)) for table in arrival.read()]
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def settle(folder: Path, content: bytes, name: str = "rows.csv") -> tuple[FilesSource, list[str]]:
    (folder / name).write_bytes(content)
    return find_settings(FilesSource(kind="files", path=name), str(folder))


PACKED = {
    "csv": TEXT.encode(),
    "parquet": as_parquet(),
    "gzip": gzip.compress(TEXT.encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "zstd": zstd(TEXT.encode()),
    "zip": zip_of(rows_csv=TEXT.encode()),
    "gzip of Parquet": gzip.compress(as_parquet()),
    "zstd of a zip": zstd(zip_of(rows_csv=TEXT.encode())),
    "zip of a gzip": zip_of(rows_csv_gz=gzip.compress(TEXT.encode())),
}


PACK = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
    "zip": lambda one: zip_of(a=one),
}


@pytest.mark.parametrize("outer", PACK)
@pytest.mark.parametrize("inner", PACK)
def test_a_file_may_be_packed_twice(tmp_path: Path, inner: str, outer: str) -> None:
    assert read(tmp_path, PACK[outer](PACK[inner](TEXT.encode()))) == ROWS


@pytest.mark.parametrize("kind", PACK)
def test_a_file_that_is_packed_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    content = TEXT.encode()
    for _ in range(6):
        content = PACK[kind](content)
    with pytest.raises(SourceInvalid, match="packed in too many layers"):
        read(tmp_path, content)


def tar_of(content: bytes) -> bytes:
    """A tar archive of one CSV file."""
    sink, member = io.BytesIO(), tarfile.TarInfo("rows.csv")
    member.size = len(content)
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


@pytest.mark.parametrize("name", ["rows", "rows.csv", "rows.PARQUET", "rows.gz", "rows.zip", "rows.txt"])
@pytest.mark.parametrize("kind", PACKED)
def test_the_bytes_of_a_file_say_what_it_is_and_not_its_name(tmp_path: Path, kind: str, name: str) -> None:
    assert read(tmp_path, PACKED[kind], name) == ROWS


def test_all_members_of_a_zip_are_read_but_those_that_are_no_data(tmp_path: Path) -> None:
    content = zip_of(
        __MACOSX___a_csv=b"\0", a_csv=TEXT.encode(), _DS_Store=b"\0", empty_csv=b"", in__b_csv=TEXT.encode()
    )
    assert read(tmp_path, content) == ROWS + ROWS


def test_members_of_a_zip_may_order_their_columns_otherwise_but_not_have_others(tmp_path: Path) -> None:
    assert read(tmp_path, zip_of(a_csv=b"p,q\n1,2\n", b_csv=b"q,p\n2,1\n")) == [("1", "2"), ("1", "2")]
    with pytest.raises(SourceInvalid, match="different columns"):
        read(tmp_path, zip_of(a_csv=b"p,q\n1,2\n", b_csv=b"p,r\n2,1\n"))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"<html><body>", "web page"),
        (b"ARROW1\0\0", "Arrow"),
        (tar_of(TEXT.encode()), "tar archive"),
        (gzip.compress(tar_of(TEXT.encode())), "tar archive"),
        (b"PK\3\4", "damaged"),
        (zip_of(_hidden=b"a,b\n"), "holds no data"),
        (zstd(TEXT.encode() * 1000)[:-4], "truncated"),
        (as_parquet()[:-4], "damaged"),
        (b"", "empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_the_name_of_the_cause(
    tmp_path: Path, content: bytes, cause: str
) -> None:
    with pytest.raises(SourceInvalid, match=cause):
        read(tmp_path, content)


ENCODED = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]


def test_a_line_of_any_length_is_refused_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.content.LINE_CHARACTERS", 100)
    fits, not_all = b"a" * 98 + b"\n", b"b" * 99 + b"\n"
    assert read(tmp_path, gzip.compress(fits * 3), line_column="text") == [("a" * 98,)] * 3
    with pytest.raises(SourceInvalid, match="too long"):
        read(tmp_path, gzip.compress(fits + not_all), line_column="text")


@pytest.mark.parametrize(
    ("path", "error"), [("ftp://127.0.0.1:9/rows.csv", ServiceUnreachable), ("nothing://rows.csv", SourceInvalid)]
)
def test_a_store_that_is_away_or_unknown_is_named(path: str, error: type[NightjarError]) -> None:
    with pytest.raises(error, match=path):
        list(list_files(FilesSource(kind="files", path=path), "/"))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ENCODED)
def test_the_dialect_is_found_once_and_read_the_same(tmp_path: Path, encoding: str, separator: str, ends: str) -> None:
    rows = [("name", "amount", "town"), *[(f"Zoë {number}", f'1,5 "x" {number}', "Köln") for number in range(30)]]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, lineterminator=ends).writerows(rows)
    source, notes = settle(tmp_path, buffer.getvalue().encode(encoding))
    assert rows_of(source, tmp_path) == rows[1:]
    marked = encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")
    assert source.separator == separator
    assert (source.encoding == "utf-8") == marked
    assert len(notes) == (separator != ",") + (not marked)


def test_a_plain_file_needs_no_settings(tmp_path: Path) -> None:
    source, notes = settle(tmp_path, TEXT.encode())
    assert source.model_dump(exclude_unset=True) == {"kind": "files", "path": "rows.csv"}
    assert notes == []


def test_other_than_ascii_text_deep_in_a_file_decides_its_encoding(tmp_path: Path) -> None:
    content = b"a,b\n" + b"1,2\n" * 400_000 + "3,Zürich\n".encode("cp1252")
    source, _ = settle(tmp_path, content)
    assert source.encoding == "cp1252"
    with pytest.raises(SourceInvalid, match=r"not UTF-8 text[\s\S]*cp1252"):
        read(tmp_path, "a,b\n3,Zürich\n".encode("cp1252"))


@pytest.mark.parametrize("other", ["é".encode("cp1252"), "Łódź".encode(), "é".encode("utf-16")])
def test_the_files_of_a_folder_are_looked_at_together(tmp_path: Path, other: bytes) -> None:
    header, rows = b"a;b\n", b"1;2\n" * 20
    text = other.decode("utf-16") if other[:1] == b"\xff" else None
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.csv").write_bytes(header + rows)
    content = f"a;b\n{text};1\n".encode("utf-16") if text else header + other + b";1\n"
    (tmp_path / "in" / "2.csv").write_bytes(content)
    source, _ = find_settings(FilesSource(kind="files", path="in"), str(tmp_path))
    assert source.separator == ";"
    assert source.encoding == ("cp1252" if other == b"\xe9" else "utf-8")
    assert rows_of(source, tmp_path)[-1] == ("Łódź" if len(other) > 4 else "é", "1")


@pytest.mark.parametrize(
    "above",
    ["# exported\n# by, shop\n", "Sales report\n\n", "Sales report\nfrom, 2026\n\n\n", "// note, of, four, parts\n"],
)
def test_lines_above_the_header_are_skipped_with_a_note(tmp_path: Path, above: str) -> None:
    table = "id,name,amount,day,town\n" + "".join(f"{number},x,1,2,y\n" for number in range(9))
    source, notes = settle(tmp_path, (above + table).encode())
    assert source.skip_lines == above.count("\n")
    assert "lines above the header are skipped" in notes[0]
    assert rows_of(source, tmp_path) == [(str(number), "x", "1", "2", "y") for number in range(9)]


def test_a_line_of_another_width_keeps_its_number(tmp_path: Path) -> None:
    found = read(tmp_path, f"id,name,amount\n{SIX}TOTAL,6\n".encode())
    assert len(found) == 7
    assert found[-1] == ("line 8 with 2 of 3 values",)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("id,name,amount\n" + SIX + "x\n" * 6, "6 of 12 rows read; line 8 has 1 values, the header has 3"),
        ("id,name\n" + SIX, "6 of 6 rows"),
        ("id,name,amount\n" + SIX + "9,x", "truncated or damaged"),
        ("id,name,amount\n" + SIX + '9,x,"1\n' + SIX, "quotation mark of the file is never closed"),
        ("id,name,amount\n" + SIX + '9,"x\n' + SIX + '7,x,1\n8,x",1,1,1,1,1\n' + SIX, "another number of values"),
        ("id;name;amount\n", "not separated by commas"),
        ("id,name,\na,b,1\n", "column without a name has values"),
    ],
)
def test_what_would_lose_rows_or_values_is_refused(tmp_path: Path, content: str, cause: str) -> None:
    with pytest.raises(SourceInvalid, match=cause):
        read(tmp_path, content.encode())


def test_empty_columns_without_a_name_at_the_end_are_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, b"p,q,,\n1,2,,\n3,4,,\n") == [("1", "2"), ("3", "4")]
    assert read(tmp_path, b"p,q\n1,2,,\n3,4,,\n") == [("1", "2"), ("3", "4")]
    _, notes = settle(tmp_path, b"p,q,,\n1,2,,\n3,4,,\n")
    assert "2 columns without a name" in notes[0]


def test_backslashes_before_quotation_marks_are_found(tmp_path: Path) -> None:
    source, notes = settle(tmp_path, b"id,text\n" + b'1,"say \\"a, b\\", please"\n' * 5)
    assert source.escape == "\\"
    assert len(notes) == 1
    assert rows_of(source, tmp_path) == [("1", 'say "a, b", please')] * 5


def test_quoted_line_breaks_are_values_also_beyond_a_block_and_in_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.content.BLOCK", 1 << 10)
    content = '"id\nof row",text\n' + "".join(f'{number},"one\ntwo\r\nthree"\n' for number in range(500))
    found = read(tmp_path, content.encode())
    assert found == [(str(number), "one\ntwo\r\nthree") for number in range(500)]


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        ("17.9,3,M", False),
        ("17.9,2026-03-01,x", False),
        ("id,3,M", True),
        ("0,1,2", True),
        ("2019,2020,2021", True),
        ("radius,size,kind", True),
    ],
)
def test_a_first_row_that_looks_like_values_is_no_header(tmp_path: Path, first: str, is_header: bool) -> None:
    rows = [f"{number}.5,{number + 3},M" for number in range(20)]
    if "2026" in first:
        rows = [f"{number}.5,2026-03-{number + 1:02d},x" for number in range(20)]
    source, notes = settle(tmp_path, "\n".join([first, *rows, ""]).encode())
    assert (source.header == ()) == is_header
    if not is_header:
        assert source.header == ("column_1", "column_2", "column_3")
        assert "looks like values" in notes[0]
        assert len(rows_of(source, tmp_path)) == 21


def xlsx(**sheets: list[list[object]]) -> bytes:
    """A workbook as a spreadsheet program writes it, reduced to what it must have."""
    home = "http://schemas.openxmlformats.org"
    main, office = f"{home}/spreadsheetml/2006/main", f"{home}/officeDocument/2006/relationships"
    package = f'xmlns="{home}/package/2006/relationships"'
    names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, start=1))
    links = "".join(
        f'<Relationship Id="r{n}" Type="{office}/worksheet" Target="worksheets/{n}.xml"/>'
        for n in range(1, len(sheets) + 1)
    )
    book = f'<Relationship Id="r1" Type="{office}/officeDocument" Target="xl/workbook.xml"/>'
    files = {
        "_rels/.rels": f"<Relationships {package}>{book}</Relationships>",
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{names}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f"<Relationships {package}>{links}</Relationships>",
    }
    for number, rows in enumerate(sheets.values(), start=1):
        cells = "".join(f'<row r="{n}">{"".join(map(to_cell, row))}</row>' for n, row in enumerate(rows, start=1))
        files[f"xl/worksheets/{number}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def to_cell(value: object) -> str:
    if value is None:
        return "<c/>"
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
    return f'<c t="b"><v>{int(value)}</v></c>' if isinstance(value, bool) else f"<c><v>{value}</v></c>"


SHEET: list[list[object]] = [["id", "amount", "ok", None], ["a", 12, True, None], [None] * 4, ["b", 1.5, False, None]]
CELLS = [("a", "12", "true"), ("b", "1.5", "false")]


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.csv"])
def test_a_spreadsheet_is_read_as_text(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, xlsx(Data=SHEET, Empty=[]), name) == CELLS
    assert read(tmp_path, gzip.compress(xlsx(Data=SHEET)), name) == CELLS
    with pytest.raises(SourceInvalid, match="without a name has values"):
        read(tmp_path, xlsx(Data=[*SHEET, ["c", 1, True, "note"]]), name)


def test_of_several_sheets_one_is_chosen_once_and_the_others_are_named(tmp_path: Path) -> None:
    content = xlsx(Orders=SHEET, Returns=SHEET[:2])
    with pytest.raises(SourceInvalid, match="several sheets"):
        read(tmp_path, content)
    source, notes = settle(tmp_path, content)
    assert source.sheet == "Orders"
    assert "not Returns" in notes[0]
    assert rows_of(source, tmp_path) == CELLS
    (tmp_path / "rows.csv").write_bytes(xlsx(Other=SHEET))
    with pytest.raises(SourceInvalid, match="no sheet 'Orders'"):
        rows_of(source, tmp_path)


def test_rows_above_the_header_of_a_sheet_are_skipped_with_a_note(tmp_path: Path) -> None:
    more = [[f"m{number}", number, True] for number in range(5)]
    source, notes = settle(tmp_path, xlsx(Data=[["Report of May"], [], *SHEET, *more]))
    assert source.skip_lines == 2
    assert "Report of May" in notes[0]
    assert rows_of(source, tmp_path)[:2] == CELLS


def test_a_damaged_spreadsheet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="spreadsheet cannot be read"):
        read(tmp_path, zip_of(xl__workbook_xml=b"<nothing"))
    with pytest.raises(SourceInvalid, match="spreadsheet cannot be read"):
        read(tmp_path, b"\xd0\xcf\x11\xe0" + bytes(1000))


LINES = (
    '{"id": "a", "n": 12345678901234567890, "x": 1.10, "ok": true, "none": null, "tags": ["é", {"k": 1}]}\n\n'
    '{"id": "b", "late": 1e5, "x": "", "n": -0.0}\n'
)
JSON_ROWS = [
    ("a", "12345678901234567890", "1.10", "true", None, '["é", {"k": "1"}]', None),
    ("b", "-0.0", None, None, None, None, "1e5"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_json_lines_are_read_as_text_with_all_their_keys(tmp_path: Path, encoding: str, pack: object) -> None:
    assert read(tmp_path, pack(LINES.encode(encoding)), "rows.jsonl") == JSON_ROWS  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ('[{"id": "a"}]\n', "not JSON lines"),
        ('{\n"id": "a"\n}\n', "not JSON lines"),
        ('{"id": "a"}\n5\n', "line 2"),
        ('{"id": "a"}\n{"id": "b', "truncated or damaged"),
        ('{"id": ' + "[" * 100_000 + "\n", "too many nested|not JSON lines"),
    ],
)
def test_what_is_no_json_line_is_named_by_its_number(tmp_path: Path, content: str, cause: str) -> None:
    with pytest.raises(SourceInvalid, match=cause):
        read(tmp_path, content.encode())


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


@given(
    st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-16", "utf-8-sig"]),
)
@example([['"', "\r", "\n"]], ";", "utf-16")
def test_what_a_writer_quotes_is_read_as_it_was(rows: list[list[str]], separator: str, encoding: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    fs = fsspec.filesystem("memory")
    fs.pipe("/quoted/rows.csv", buffer.getvalue().encode(encoding))
    source = FilesSource(kind="files", path="memory://quoted/rows.csv", separator=separator)
    found = [row for arrival in list_files(source, "") for table in arrival.read() for row in table.to_pylist()]
    assert [[value or "" for value in row.values()] for row in found] == rows
    assert all(UNPARSED not in row for row in found)


def test_a_spreadsheet_that_would_not_fit_into_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '<row r="{0}"><c r="{1}{0}"><v>1</v></c></row>'
    far = xlsx(Data=[["a"], [1]])
    spread = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(far)) as old, zipfile.ZipFile(spread, "w") as new:
        for name in old.namelist():
            text = old.read(name).decode()
            new.writestr(name, text.replace("</sheetData>", row.format(1_048_576, "XFD") + "</sheetData>"))
    with pytest.raises(SourceInvalid, match="too large") as caught:
        read(tmp_path, spread.getvalue())
    assert "17,179,869,184 cells" in str(caught.value)
    monkeypatch.setattr("tasks.sources.workbook.MOST_BYTES", 100)
    with pytest.raises(SourceInvalid, match="MB unpacked"):
        read(tmp_path, far)


def test_a_sheet_and_a_header_that_people_name_are_kept(tmp_path: Path) -> None:
    (tmp_path / "book.xlsx").write_bytes(xlsx(Orders=SHEET, Returns=SHEET[:2]))
    source, notes = find_settings(FilesSource(kind="files", path="book.xlsx", sheet="Returns"), str(tmp_path))
    assert (source.sheet, notes) == ("Returns", [])
    (tmp_path / "rows.csv").write_text("a,b\nc,d\ne,f\n")
    source = FilesSource(kind="files", path="rows.csv")
    assert find_settings(source, str(tmp_path))[0].header == ()
    assert find_settings(source, str(tmp_path), is_headed=False)[0].header == ("column_1", "column_2")
    assert find_settings(source, str(tmp_path), is_headed=True)[0].header == ()
    named = source.model_copy(update={"header": ("x", "y")})
    assert find_settings(named, str(tmp_path))[0].header == ("x", "y")
    assert [list(table.column_names) for one in list_files(named, str(tmp_path)) for table in one.read()] == [
        ["x", "y"]
    ]
