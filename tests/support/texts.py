"""Texts that have broken a loader somewhere: quotes, scripts, control characters, COPY's own marks."""

AWKWARD = [
    "it's",
    'say "no"',
    "ünïcödé 夜鷹 🐦",
    "two\nlines\r\n",
    "tab\there",
    "back\\slash\\N",
    "\\.",
    "a\n\\.\nb",
    "",
    " ",
]
