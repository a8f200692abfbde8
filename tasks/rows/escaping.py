"""Text of rows where a program would take it for more than text: as a formula of a spreadsheet, or as Markdown."""

import re

import pandas as pd

# Spreadsheets also see a formula behind white space and in full-width characters. A plain number is none.
FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MARKDOWN = re.compile(r"[!#$&*<>\[\\\]^_`{|}~@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
HTML = {"<": "&lt;", ">": "&gt;"}


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame for a CSV file that people open: a text or column name that is a formula gets an apostrophe before it."""
    texts = frame.select_dtypes(["object", "string"]).map(
        lambda value: guard(value) if isinstance(value, str) else value
    )
    return frame.assign(**{str(name): texts[name] for name in texts}).rename(columns=guard)


def guard(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def unguard(text: str) -> str:
    """The text that `guard` got; a text without the apostrophe stays as it is."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text) else text


def escape_markdown(text: str) -> str:
    """A text on one line that Markdown shows as it is: no link, image, table cell or HTML."""
    return MARKDOWN.sub(lambda found: HTML.get(found[0], f"\\{found[0]}"), " ".join(text.split()))
