"""The links between the pages of a detector's nights, DATE.html in one folder, and from its index.html.

A page is rendered once; when another is added or deleted, only the links of its neighbours are written anew.
"""

import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from filelock import FileLock

INDEX, LOCK = "index.html", ".links.lock"
LOCK_TIMEOUT_S = 30.0
LINKS = re.compile(r"(<!--links-->).*?(<!--/links-->)", re.DOTALL)  # values are escaped: none contains this
NIGHT_LINK = re.compile(r'<a href="(\d{4}-\d\d-\d\d)\.html">([^<]*)</a>')


def write_page(path: Path, text: str) -> None:
    """Write a page whole: whoever opens it meanwhile sees the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def list_nights(folder: Path) -> list[Path]:
    """The pages of nights in a folder, by date."""
    return sorted(folder.glob("????-??-??.html"))


def link_nights(folder: Path, pages: Iterable[Path], render_index: Callable[[], str] | None = None) -> None:
    """Link some pages of nights, and their neighbours, with each other, once they are written or deleted.

    render_index: reads the nights and returns the index, one process at a time: no older index replaces a newer one.
    """
    if folder.exists():
        with FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_S):
            if render_index:
                write_page(folder / INDEX, render_index())
            _link(folder, pages)


def delete_nights(folder: Path, pages: Iterable[Path]) -> None:
    """Delete pages for good, and the links to them: nobody who is writing links brings one back."""
    if folder.exists():
        with FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_S):
            gone = [page for page in pages if page.parent == folder]
            for page in gone:
                page.unlink(missing_ok=True)
            _link(folder, gone)


def _link(folder: Path, pages: Iterable[Path]) -> None:
    there = [page.stem for page in list_nights(folder)]
    places: set[int] = set()
    for day in [page.stem for page in pages if page.parent == folder]:
        places |= {bisect_left(there, day) - 1, *range(bisect_left(there, day), bisect_right(there, day) + 1)}
    for place in places & {*range(len(there))}:
        links = _name_links(there[max(0, place - 1) : place], there[place + 1 : place + 2])
        _edit(folder / f"{there[place]}.html", partial(LINKS.sub, rf"\g<1>{links}\g<2>"))
    if (folder / INDEX).exists():
        _edit(folder / INDEX, lambda page: NIGHT_LINK.sub(lambda link: link[0] if link[1] in there else link[2], page))


def _name_links(earlier: list[str], later: list[str]) -> str:
    links = [f'<a href="{INDEX}">All nights</a>']
    links += [f'<a rel="prev" href="{night}.html">Night before: {night}</a>' for night in earlier]
    links += [f'<a rel="next" href="{night}.html">Next night: {night}</a>' for night in later]
    return " ".join(links)


def _edit(path: Path, change: Callable[[str], str]) -> None:
    page = path.read_text(encoding="utf-8")
    if (changed := change(page)) != page:
        write_page(path, changed)
