from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

from tasks.pages.nights import delete_nights, link_nights, list_nights, write_page

DAYS = [date(2026, 3, 1) + timedelta(days=offset) for offset in range(5)]
PAGE = "<p>before</p><nav><!--links--><!--/links--></nav><p>after</p>"


def read_links(folder: Path, day: date) -> list[str]:
    page = (folder / f"{day}.html").read_text()
    assert page.startswith("<p>before</p>") and page.endswith("<p>after</p>")
    return [part.split('"')[0] for part in page.split('href="')[1:]]


def test_pages_link_their_neighbours_whatever_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    for place in (3, 0, 1, 4):
        write_page(tmp_path / f"{DAYS[place]}.html", PAGE)
        link_nights(tmp_path, [tmp_path / f"{DAYS[place]}.html"])
    assert read_links(tmp_path, DAYS[0]) == ["index.html", f"{DAYS[1]}.html"]
    assert read_links(tmp_path, DAYS[1]) == ["index.html", f"{DAYS[0]}.html", f"{DAYS[3]}.html"]
    assert read_links(tmp_path, DAYS[3]) == ["index.html", f"{DAYS[1]}.html", f"{DAYS[4]}.html"]
    assert read_links(tmp_path, DAYS[4]) == ["index.html", f"{DAYS[3]}.html"]
    assert not list(tmp_path.glob("*.new"))


def test_nothing_links_to_a_page_that_was_deleted(tmp_path: Path) -> None:
    index = "".join(f'<td><a href="{day}.html">{day}</a></td>' for day in DAYS)
    write_page(tmp_path / "index.html", index)
    for day in DAYS:
        write_page(tmp_path / f"{day}.html", PAGE)
    link_nights(tmp_path, list_nights(tmp_path))
    assert (tmp_path / "index.html").read_text() == index
    gone = [tmp_path / f"{day}.html" for day in (DAYS[0], DAYS[1], DAYS[3])]
    delete_nights(tmp_path, [*gone, tmp_path / "others" / f"{DAYS[2]}.html"])
    assert read_links(tmp_path, DAYS[2]) == ["index.html", f"{DAYS[4]}.html"]
    assert read_links(tmp_path, DAYS[4]) == ["index.html", f"{DAYS[2]}.html"]
    page = (tmp_path / "index.html").read_text()
    assert page.count("<a ") == 2
    assert f"<td>{DAYS[0]}</td>" in page


def test_pages_that_many_write_at_once_are_all_linked(tmp_path: Path) -> None:
    days = [DAYS[0] + timedelta(days=offset) for offset in range(24)]

    def write(day: date) -> None:
        write_page(tmp_path / f"{day}.html", PAGE)
        link_nights(tmp_path, [tmp_path / f"{day}.html"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, days))
    for before, day, after in zip(days, days[1:], days[2:], strict=False):
        assert read_links(tmp_path, day) == ["index.html", f"{before}.html", f"{after}.html"]


def test_only_the_neighbours_are_written_again(tmp_path: Path) -> None:
    for day in DAYS[:4]:
        write_page(tmp_path / f"{day}.html", PAGE)
    link_nights(tmp_path, list_nights(tmp_path))
    before = {path: path.stat().st_ino for path in list_nights(tmp_path)}
    write_page(tmp_path / f"{DAYS[4]}.html", PAGE)
    link_nights(tmp_path, [tmp_path / f"{DAYS[4]}.html"])
    changed = [path.stem for path, inode in before.items() if path.stat().st_ino != inode]
    assert changed == [f"{DAYS[3]}"]


def test_a_page_of_an_older_version_has_no_place_for_links_and_stays_as_it_is(tmp_path: Path) -> None:
    write_page(tmp_path / f"{DAYS[0]}.html", "<p>old</p>")
    write_page(tmp_path / f"{DAYS[1]}.html", PAGE)
    link_nights(tmp_path, [tmp_path / f"{DAYS[1]}.html"])
    assert (tmp_path / f"{DAYS[0]}.html").read_text() == "<p>old</p>"
