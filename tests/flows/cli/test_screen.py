"""What comes from data is printed as data: a terminal obeys none of it, a spreadsheet computes none of it."""

import sys
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from rich.table import Table
from toy import DAYS, FIRST, Project, make_rows

from flows.cli.main import execute
from flows.cli.screen import make_printable, print_csv, print_rows, showing_progress, stderr, stdout
from tasks.review import QUESTIONS, read_answers

HOSTILE = ["\x1b[2J\x1b]0;owned\x07", "\x9b31m", "a\rb", "\u202egnp.exe", "[red]x[/red]", "[/x]", "=1+1", "\x7f\x08"]
OBEYED = ("\x1b", "\x9b", "\x07", "\r", "\x08", "\x7f", "\u202e")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_and_a_message_show_any_text(capsys: pytest.CaptureFixture[str], text: str) -> None:
    print_rows(Table(title=text), [{"id": text + "\nb"}], ("id",))
    for console in (stdout, stderr):
        console.print(f"record {text}", soft_wrap=True)
    shown = "".join(capsys.readouterr())
    assert shown.count(make_printable(text)) == 4
    assert not [character for character in OBEYED if character in shown]
    assert not [line for line in shown.splitlines() if line.startswith("b")]  # a cell has one line


def test_verdicts_on_ids_that_are_formulas_come_back_with_these_ids(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ids = [*HOSTILE, "'=1+1", "@SUM(A1)", "-5", "plain", "a,b\n=2", "\t+1"]
    asked = pd.DataFrame({"record_id": ids}).assign(
        batch_date=date(2026, 3, 1), attempt=1, score=-1.5, inclusion=1.0, causes="=x"
    )
    print_csv(asked.assign(verdict="normal", note="")[QUESTIONS])
    (tmp_path / "asked.csv").write_bytes(capsys.readouterr().out.encode())
    written = pd.read_csv(tmp_path / "asked.csv", dtype=str, keep_default_na=False)
    assert not [text for text in written["record_id"] if text.strip()[:1] in "=+@"]
    assert read_answers(tmp_path / "asked.csv")["record_id"].tolist() == ids


def test_a_file_with_hostile_ids_and_values_is_scored_without_harm(
    trained: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = make_rows(FIRST + pd.Timedelta(days=DAYS)).head(len(HOSTILE)).assign(order_id=HOSTILE, shop=HOSTILE)
    rows.loc[0, "spend"] = -1.0
    path = tmp_path / "\x1b31m.csv"
    rows.to_csv(path, index=False, quoting=1)
    assert execute(["score", "orders", "--source", str(path)]) == 0
    assert execute(["explain", "orders", HOSTILE[0]]) == 1
    shown = "".join(capsys.readouterr())
    assert "\\x1b]0;owned" in shown
    assert "[/x]" in shown
    assert not [character for character in OBEYED if character in shown]


@pytest.mark.parametrize("width", [80, 60])
def test_numbers_and_dates_are_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(stdout, "_width", width)
    counts = ("rows_in", "quarantined", "excluded", "scored", "flagged")
    night = {"batch_date": date(2026, 11, 21), "threshold": 1.2345, "seconds": 12.5} | dict.fromkeys(counts, 12_345)
    line = {"detector": "payments_of_cards", "newest_night": date(2026, 11, 21), "stale": 9, "error": "x " * 200}
    for row in (night, line):
        print_rows(Table(title="x"), [row], tuple(row))
        shown = capsys.readouterr().out
        assert "2026-11-21" in shown
        assert "\u2026" not in shown
    print_rows(Table(), [night], tuple(night))
    assert capsys.readouterr().out.count("12,345") == 5


def test_what_libraries_print_during_a_run_is_not_in_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_progress():
        sys.stdout.write("View run at http://127.0.0.1:5000")
    stdout.print("{}")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert "View run" in captured.err
