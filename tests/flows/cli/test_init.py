"""`nightjar init` from a new file to a scored night, and bad input that is refused with nothing written."""

import json
import os
import sqlite3
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from toy import DAYS, FIRST, ROWS, Project, make_rows, point_to

from flows.cli.main import execute
from flows.config.params import load_detector
from flows.config.write import insert_section, name_query, render_contract
from tasks.errors import ParamsInvalid, SourceInvalid
from tasks.rows.contract import Contract
from tasks.sources.files import FilesSource, name_files
from tasks.stores.lake import Lake
from tasks.stores.warehouse import Warehouse

LAST = FIRST + timedelta(days=DAYS - 1)


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail with one readable message; return it."""
    assert execute(list(arguments)) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err[captured.err.index("error: ") :]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run a command with --json and return the one document it prints."""
    capsys.readouterr()
    assert execute([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def make_machines(rows: int = 700) -> pd.DataFrame:
    """Machines whose heat follows their load, except the last 30, which are labelled; and useless columns."""
    rng = np.random.default_rng(11)
    load = rng.uniform(10, 90, rows)
    heat = 20 + load / 2 + rng.normal(0, 1, rows)
    heat[-30:] = 95 - load[-30:]
    return pd.DataFrame(
        {
            "machine_id": [f"m-{n:04d}" for n in range(rows)],
            "load %": load.round(3),
            "heat, in °C": heat.round(3),
            "site": rng.choice(["east", "west", "north"], rows),
            "firmware": "2.1",
            "label": np.where(np.arange(rows) < rows - 30, "fine", "broken"),
        }
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project in the current folder, with machines.csv."""
    point_to(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    make_machines().to_csv(tmp_path / "machines.csv", index=False)
    return tmp_path


def find_record(folder: Path, name: str) -> str:
    """The id of a validated row of the newest batch."""
    lake = Lake(str(folder / ".nightjar" / "lake"))
    [part] = lake.get("validated", name, lake.dates("validated", name)[-1]).parts
    return str(next(lake.slices(part))["record_id"][0])


INIT = ("init", "machines", "--source", "machines.csv")


def test_init_makes_a_detector_from_a_file_that_runs_at_once_and_scores_another_file(
    prefect_server: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = answer(capsys, *INIT, "--label", "label")
    kinds = {column["column"]: column["kind"] for column in result["columns"]}
    assert kinds == {
        "machine_id": "left out", "load %": "numeric", "heat, in °C": "numeric", "site": "categorical",
        "firmware": "left out", "label": "left out",
    }  # fmt: skip
    assert all(column["rule"] for column in result["columns"])

    summary = answer(capsys, "run", "machines")
    [night] = summary["nights"]
    assert (night["quarantined"], night["rows_in"]) == (0, night["scored"])
    assert 40 < night["scored"] < 100
    assert 0 < summary["metrics"]["anomalies"] < 10  # the file is sorted by its label, the night is not
    assert summary["metrics"]["auroc"] > 0.95
    [note] = summary["notes"]
    assert "nightjar run machines --all" in note
    explained = answer(capsys, "explain", "machines", find_record(folder, "machines"))
    assert explained["event_time"] is None
    page = (folder / ".nightjar/reports/machines" / f"{night['batch_date']}.html").read_text()
    assert "event time" not in page

    loose = make_machines(200).drop(columns=["label", "firmware"]).astype({"load %": object})
    loose.loc[3, "load %"], loose.loc[4, "site"] = "much", None
    (folder / "loose.csv").write_text(loose.to_csv(index=False) + "TOTAL,200\n")
    found = answer(capsys, "score", "machines", "--source", "loose.csv", "--output", "all.parquet", "--limit", "40")
    assert (found["rows"], found["scored"], len(found["records"])) == (201, 198, 40)
    assert {row["record_id"]: row["reason"] for row in found["bad_rows"]} == {
        "m-0003": "load %: not readable as float", "m-0004": "site column values to not be null",
        "line 202 with 2 of 4 values": "another number of values than the header has",
    }  # fmt: skip
    scores = [record["score"] for record in found["records"]]
    assert scores == sorted(scores, reverse=True)
    broken = {record["record_id"] for record in found["records"] if record["is_flagged"]}
    assert len(broken & {f"m-{n:04d}" for n in range(170, 200)}) > 20
    assert sum(cause["share"] for cause in found["records"][0]["causes"]) == pytest.approx(scores[0], rel=1e-6)
    everything = pd.read_parquet(folder / "all.parquet")
    assert everything["record_id"].tolist()[:-1] == loose["machine_id"].tolist()
    assert everything["reason"].notna().sum() == 3
    assert execute(["score", "machines", "--source", "loose.csv"]) == 0
    assert "201 rows: 198 scored" in capsys.readouterr().out


def test_another_rule_for_times_after_a_run_takes_effect(
    prefect_server: None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, days = np.random.default_rng(0), pd.date_range("2016-01-01", "2016-04-30").astype(str)
    frame = pd.DataFrame({"DATE": days, "high": rng.normal(20, 5, len(days)), "low": rng.normal(10, 5, len(days))})
    frame.round(1).to_csv(folder / "weather.csv", index=False)
    given = ("init", "weather", "--source", "weather.csv")
    answer(capsys, *given)
    [old] = answer(capsys, "run", "weather")["nights"]
    answer(capsys, *given, "--time", "DATE", "--force")
    found = answer(capsys, "run", "weather")
    assert found["nights"] == []
    assert "changed after version 1 was trained: nightjar run weather --retrain" in found["notes"][0]
    nights = answer(capsys, "run", "weather", "--retrain")["nights"]
    assert [night["batch_date"] for night in nights] == [f"2016-04-{day}" for day in range(24, 31)]
    assert old["batch_date"] > "2016-04-30"  # no row is left there, and a training does without the date
    states = {night["batch_date"]: night["state"] for night in answer(capsys, "status", "weather")["nights"]}
    assert states == {night["batch_date"]: "fresh" for night in nights} | {old["batch_date"]: "stale"}
    plan = answer(capsys, "backfill", "weather", "--from", "2016-04-24", "--to", "2026-12-31", "--dry-run")
    assert plan["not_landed"] == [] and len(plan["nights"]) == len(states)
    assert execute(["train", "weather"]) == 0


def test_scoring_a_file_gives_the_published_scores_and_lands_nothing(
    trained: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, day = Lake(str(trained.folder / ".nightjar" / "lake")), LAST
    engine = Warehouse(f"duckdb:///{trained.folder}/.nightjar/warehouse.duckdb")
    batch = next(batch for batch in engine.read_nights("orders") if batch.batch_date == day)
    scores = lake.get("scores", "orders", day, batch.scores)
    published = pd.concat(table.to_pandas() for part in scores.parts for table in lake.slices(part))
    published = published.set_index("record_id")["score"]
    make_rows(day).drop(columns="fraud").to_csv(trained.folder / "loose.csv", index=False)
    before = lake.dates("landing", "orders")
    found = answer(capsys, "score", "orders", "--source", str(trained.folder / "loose.csv"))
    assert found["rows"] == ROWS == len(found["records"])
    assert {r["record_id"]: r["score"] for r in found["records"]} == published.to_dict()
    assert found["reasons"] == {}
    assert not any("example.org" in json.dumps(record) for record in found["records"])
    assert lake.dates("landing", "orders") == before


def test_scoring_a_file_without_the_columns_or_without_a_champion_is_refused(
    trained: Project, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(capsys, *INIT, "--label", "label")["detector"] == "machines"
    assert "no champion" in refuse(capsys, "score", "machines", "--source", "machines.csv")
    point_to(monkeypatch, trained.folder)
    make_rows(LAST).drop(columns=["spend", "shop"]).to_csv(folder / "short.csv", index=False)
    assert "lacks shop, spend" in refuse(capsys, "score", "orders", "--source", str(folder / "short.csv"))
    assert "has no file" in refuse(capsys, "score", "orders", "--source", "none.csv")
    assert execute(["score", "orders", "--limit", "3"]) == 2
    assert execute(["score", "orders", "--source", "x.csv", "--date", "2026-01-01"]) == 2


# --- what is written ---


def test_init_proposes_the_entity_and_the_values_that_flags_carry(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_machines().assign(host=[f"h{n % 90}" for n in range(700)])
    made.to_csv(folder / "machines.csv", index=False)
    answer(capsys, *INIT, "--label", "label")
    detector = load_detector(folder, "machines").detector
    assert (detector.entity, detector.publish.show) == ("host", ("load %", "heat, in °C", "site"))
    answer(capsys, *INIT, "--label", "label", "--entity", "site", "--force")
    assert load_detector(folder, "machines").detector.entity == "site"
    answer(capsys, "run", "machines")
    flags = answer(capsys, "flags", "machines")["flags"]
    truth = make_machines().set_index("machine_id")
    assert {flag["record_id"]: flag["entity"] for flag in flags} == {
        flag["record_id"]: truth["site"][flag["record_id"]] for flag in flags
    }
    assert [flag["record"]["load %"] for flag in flags] == [truth["load %"][flag["record_id"]] for flag in flags]


def test_init_creates_params_yaml_and_fills_empty_braces(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *INIT)
    first = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text("detectors: {} # none yet\n")
    answer(capsys, *INIT, "--force")
    assert (folder / "params.yaml").read_text() == first.replace("detectors:\n", "detectors: # none yet\n")
    assert load_detector(folder, "machines").detector.ingest.source.path == str(folder / "machines.csv")  # type: ignore[union-attr]


def test_init_writes_dates_as_text_because_dvc_reads_no_dates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *INIT)

    def check(value: object) -> None:
        assert not isinstance(value, date)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    section = yaml.safe_load((folder / "params.yaml").read_text())["detectors"]["machines"]
    check(section)
    assert isinstance(section["ingest"]["event_time"]["first_date"], str)


def test_init_keeps_all_other_text_of_params_yaml(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    params = project.folder / "params.yaml"
    text = "# ours\n" + params.read_text().replace("  orders:", "  # the shop\n  orders: # daily") + "\n# the end\n"
    params.write_text(text)
    make_machines().to_csv(project.folder / "sources" / "machines.csv", index=False)
    answer(capsys, "init", "machines", "--source", "machines.csv", "--label", "label")
    written = params.read_text()
    for line in text.splitlines():
        assert line in written
    assert written.startswith(text[: text.index("\n# the end")])
    once = (written, (project.folder / "contracts" / "machines.yaml").read_text())

    answer(capsys, "init", "beams", "--source", "machines.csv")
    answer(capsys, "init", "machines", "--source", "machines.csv", "--label", "label", "--force")
    document = yaml.safe_load(params.read_text())["detectors"]
    assert list(document) == ["orders", "machines", "beams"]
    assert params.read_text().startswith(once[0][: once[0].index("\n# the end")].rstrip())
    assert (project.folder / "contracts" / "machines.yaml").read_text() == once[1]
    assert load_detector(project.folder, "orders").name == "orders"


PARAMS = [
    "",
    "# only words\n",
    "detectors:\n",
    "detectors: {}",
    "detectors:\n    a: {x: 1}\n    # more\n",
    "detectors:\n  a:\n    x: 1",
    "detectors:\n\n  a: # one\n    x: [1,\n 2]\n\n  # two\n  b: |\n    text\n\n",
]


@pytest.mark.parametrize("text", PARAMS)
def test_a_section_fits_into_any_layout_of_params_yaml(text: str) -> None:
    before = (yaml.safe_load(text) or {}).get("detectors") or {}
    once = insert_section(text, "new", "# why\ny: 2\n", Path("params.yaml"))
    assert yaml.safe_load(once)["detectors"] == {**before, "new": {"y": 2}}
    again = insert_section(once, "new", "y: 3\n", Path("params.yaml"))
    assert yaml.safe_load(again)["detectors"] == {**before, "new": {"y": 3}}
    assert "# why" not in again
    assert [line for line in text.splitlines() if "#" in line] == [line for line in again.splitlines() if "#" in line]


@pytest.mark.parametrize(
    "text", ["detectors: {a: {x: 1}}\n", "{detectors: {a: {x: 1}}}\n", "- detectors\n", "detectors: [a]\n"]
)
def test_params_yaml_without_a_place_for_a_section_is_refused_not_rewritten(text: str) -> None:
    with pytest.raises(ParamsInvalid, match="nothing was changed"):
        insert_section(text, "new", "y: 2\n", Path("params.yaml"))


def test_a_taken_name_is_refused_and_nothing_is_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, *INIT)
    before = {path: path.read_bytes() for path in (folder / "params.yaml", folder / "contracts" / "machines.yaml")}
    assert "--force" in refuse(capsys, *INIT, "--label", "label")
    (folder / "contracts" / "belts.yaml").write_text("kept\n")
    assert "belts.yaml" in refuse(capsys, "init", "belts", "--source", "machines.csv")
    assert "lower-case letter" in refuse(capsys, "init", "My-Machines", "--source", "machines.csv")
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "contracts" / "belts.yaml").read_text() == "kept\n"


def test_if_a_folder_cannot_be_written_both_files_are_unchanged(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "params.yaml").write_text("detectors: {}\n")
    replace = Path.replace

    def fail_on_params(self: Path, target: Path) -> Path:
        if target.name == "params.yaml":
            raise PermissionError(13, "Permission denied", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_params)
    assert "Permission denied" in refuse(capsys, *INIT)
    assert (folder / "params.yaml").read_text() == "detectors: {}\n"
    assert not (folder / "contracts" / "machines.yaml").exists()


# --- sources ---


def test_a_source_path_is_written_so_that_it_can_be_found_again(folder: Path) -> None:
    (folder / "sources" / "days").mkdir(parents=True)
    (folder / "sources" / "days" / "one.csv").touch()
    assert name_files("sources/days/one.csv", "sources").path == "days/one.csv"
    assert name_files("sources/days/*.csv", "sources").path == "days/*.csv"
    assert name_files("machines.csv", "sources").path == str(folder / "machines.csv")
    assert name_files("days/one.csv", "sources").path == "days/one.csv"
    assert name_files("s3://lake/day.parquet", "sources").path == "s3://lake/day.parquet"


def test_a_query_becomes_a_detector_and_its_password_stays_in_the_environment(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(folder / "shop.db") as connection:
        make_machines().to_sql("machines", connection, index=False)
    query = 'select * from machines where "load %" > 0'
    monkeypatch.setenv("SHOP_DB", f"sqlite:///{folder}/shop.db")
    result = answer(
        capsys, "init", "machines", "--source", query, "--url", "${SHOP_DB}", "--label", "label", "--id", "machine_id"
    )
    assert {"machine_id", "label"} <= {column["column"] for column in result["columns"] if column["kind"] == "left out"}
    source = load_detector(folder, "machines").detector.ingest.source
    assert (source.url, source.query) == ("${SHOP_DB}", query)  # type: ignore[union-attr]
    assert answer(capsys, "ingest", "machines")["rows"] == 700
    assert "--url" in refuse(capsys, "init", "others", "--source", query)
    assert "cannot be read" in refuse(capsys, "init", "others", "--source", "select nothing", "--url", "${SHOP_DB}")


def test_how_a_file_is_written_is_found_once_and_written_to_params(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_machines().to_csv(sep=";", index=False)
    (folder / "machines.csv").write_bytes(f"# exported\n{table}TOTAL;;\n".encode("cp1252"))
    found = answer(capsys, *INIT, "--label", "label")
    source = yaml.safe_load((folder / "params.yaml").read_text())["detectors"]["machines"]["ingest"]["source"]
    assert source["separator"] == ";"
    assert (source["encoding"], source["skip_lines"]) == ("cp1252", 1)
    shown = "\n".join(found["notes"])
    for text in ("semicolons", "cp1252", "lines above the header are skipped: 1", "rows with another number of values"):
        assert text in shown


def test_a_contract_without_columns_is_written_so_that_it_can_be_read() -> None:
    text = render_contract(Contract(columns={}, expectations=(), ignored=("id",)), "machines")
    assert yaml.safe_load(text) == {"columns": {}, "expectations": [], "ignored": ["id"]}


def test_a_password_is_replaced_by_its_variable_or_refused() -> None:
    url = "postgresql+psycopg://reader:secret@db/shop"
    assert name_query("select 1", url, {"OTHER": "x", "SHOP_DB": url}).url == "${SHOP_DB}"
    with pytest.raises(SourceInvalid) as caught:
        name_query("select 1", url, dict(os.environ))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_kept"),
    [
        ("postgresql://reader@db/shop", True),
        ("postgresql://db:5432/shop?sslmode=require", True),
        ("sqlite:///shop.db", True),
        ("postgresql://[::1/shop", True),  # no URL, which is said when it is opened
        ("postgresql://reader:secret@[::1/shop", False),
        ("postgresql://reader@db/shop?password=secret", False),
        ("postgresql://reader:@db/shop", False),
    ],
)
def test_a_user_alone_is_no_password(url: str, is_kept: bool) -> None:
    if is_kept:
        assert name_query("select 1", url, {}).url == url
        return
    with pytest.raises(SourceInvalid, match="contains a password"):
        name_query("select 1", url, {})


@pytest.mark.parametrize(
    ("content", "asked", "what"),
    [
        (b"", (), "empty"),
        (b"a,b\n", (), "no rows"),
        (b"a,a\n1,2\n", (), "two columns with the same name"),
        (b"a,\x1b[31mred\n" + b"1,2\n" * 400, (), "The name of a column holds unprintable characters"),
        (b"a,b\n1,2\n3,4\n", (), "too few rows"),
        (b"a,b\n1,2\n3,4,5\n", (), "another number of values"),
        (b"a,b\n1,x\n2,y\n3,z\n", ("--label", "b"), "3 values"),
        (b"a,b\n1,x\n2,y\n", ("--label", "c"), "does not exist"),
        (b"a,b\n1,x\n2,y\n", ("--id", "c"), "does not exist"),
        (b"a,b\n1,x\n2,y\n", ("--time", "c"), "does not exist"),
        (b"a,b\n1,x\n2,y\n", ("--time", "b"), "no possible time"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes, asked: tuple[str, ...], what: str
) -> None:
    (folder / "bad.csv").write_bytes(content)
    assert what in refuse(capsys, "init", "bad", "--source", "bad.csv", *asked)
    assert not (folder / "params.yaml").exists()
    assert not (folder / "contracts").exists()


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "parquet"])
def test_blanks_of_any_kind_in_the_names_of_columns_become_plain_ones(folder: Path, suffix: str) -> None:
    names = {"load %": "load\r\nin  %", "heat, in °C": "\u200bheat,\xa0in\t°C"}
    frame = make_machines().rename(columns=names)
    path = folder / f"sheet.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_excel(path, index=False)
    assert execute(["init", "sheet", "--source", path.name, "--label", "label"]) == 0
    columns = yaml.safe_load((folder / "contracts" / "sheet.yaml").read_text())["columns"]
    assert {"load in %", "heat, in °C"} <= columns.keys()
    assert execute(["ingest", "sheet"]) == 0


def test_two_names_that_become_one_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"a b": [1, 2], "a\xa0b": [3, 4]}).to_csv(folder / "bad.csv", index=False)
    assert "two columns with the same name" in refuse(capsys, "init", "bad", "--source", "bad.csv")


def test_init_shows_its_choices_with_reasons(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*INIT, "--label", "label"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    decided = ["firmware left out constant", "'broken' is anomalous", "random_fraction", "the data seems to have ended"]
    for part in [*decided, "dealt at random over", "nightjar run machines"]:
        assert part in shown
    assert execute(["init", "others", "--source", "machines.csv", "--normal", "fine"]) == 2


def test_a_file_without_a_header_line_gets_the_names_that_people_give(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bare.csv").write_text("".join(f"s{n % 3},t{n % 7}\n" for n in range(200)))
    init = ("init", "bare", "--source", "bare.csv", "--force")
    for options, names in [
        (("--header", "site, kind"), ("site", "kind")),
        (("--no-header",), ("column_1", "column_2")),
    ]:
        found = answer(capsys, *init, *options)
        assert [column["column"] for column in found["columns"]] == list(names)
        params = load_detector(folder, "bare").detector.ingest
        assert isinstance(params.source, FilesSource)
        assert (params.source.header, params.first_row) == (names, 1)
    assert execute([*init, "--header", "a,b", "--has-header"]) == 2
    assert execute(["init", "bare", "--source", "with a as (select 1) select * from a", "--no-header"]) == 2
