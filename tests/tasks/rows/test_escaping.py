"""Text from data stays text in a spreadsheet and in Markdown."""

import csv
import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tasks.rows.escaping import escape_markdown, guard, unguard, without_formulas

EVIL = [
    '=HYPERLINK("http://x.example")', "+1+cmd|' /C calc'!A0",
    "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1", "\n=1",
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_a_formula_is_text_in_a_csv_file(text: str) -> None:
    assert guard(text) == f"'{text}"
    found = pd.read_csv(
        io.StringIO(
            without_formulas(pd.DataFrame({text: [text], "n": [-1.5]})).to_csv(index=False, quoting=csv.QUOTE_ALL)
        )
    )
    assert str(found.columns[0]).startswith("'")
    assert found.iloc[0, 0].startswith("'")
    assert found["n"].tolist() == [-1.5]


@pytest.mark.parametrize("text", ["-5", "+1.5e-3", "-.5", "a=b", "", "2026-03-01", "'tis", "a@b.example"])
def test_what_is_no_formula_stays(text: str) -> None:
    assert guard(text) == text


@given(st.text(st.sampled_from("'=+-@ \t\na1.")))
def test_what_is_read_again_is_what_was_written(text: str) -> None:
    assert unguard(guard(text)) == text


@given(st.text(st.sampled_from("[]()!<>|\\`*_~#&;:/.@wwwhttps ax&lt;\n"), max_size=40))
def test_markdown_shows_a_text_as_it_is(text: str) -> None:
    shown = MarkdownIt("commonmark").enable("table").renderInline(escape_markdown(text))
    for name, character in (("lt", "<"), ("gt", ">"), ("quot", '"')):
        shown = shown.replace(f"&{name};", character)
    assert shown.replace("&amp;", "&") == " ".join(text.split())


@pytest.mark.parametrize("text", ["https://x.example", "www.x.example", "WWW.x", "a@x.example"])
def test_a_bare_address_becomes_no_link(text: str) -> None:
    assert text not in escape_markdown(text)
