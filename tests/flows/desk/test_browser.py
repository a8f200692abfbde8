"""The desk in a real browser: keys, the lock of a case, narrow screens, both colour schemes, and what axe finds."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from people import NIGHT
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from flows.config.settings import Settings
from flows.desk.access import Access
from flows.desk.app import create_app

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
SCREENS = (
    f"{NIGHT}", "case/2", "case/3?then=next&judged=2", "queue", "queue?view=all", "blind", "entity/customer-1",
    "explorer", "explorer?by=cause", "nights", f"nights/{NIGHT}", "model", "rules", "find?q=nobody",
)  # fmt: skip


@pytest.fixture(scope="module")
def served(published_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a desk in a thread."""
    folder = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(published_project, folder)
    app = create_app(Settings(project=folder), Access({}, local="kim"))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return watch(context.new_page())


def watch(page: Page) -> Page:
    """A page on which anything that the browser complains of fails the test."""
    page.on("pageerror", lambda error: pytest.fail(f"script: {error}"))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    return page


complaints: list[str] = []


@pytest.fixture(autouse=True)
def nothing_is_refused() -> Iterator[None]:
    complaints.clear()
    yield
    assert not [text for text in complaints if "404" not in text]


def test_a_case_is_found_judged_and_undone_by_keys_alone(page: Page, served: str) -> None:
    page.goto(f"{served}/orders/{NIGHT}")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("o")
    page.wait_for_url("**/orders/case/2")
    page.get_by_text("Locked for you until").wait_for()  # htmx has locked it
    page.keyboard.press("f")
    page.get_by_text("Case 2: false alarm, for 2 flags.").wait_for()
    page.keyboard.press("z")
    page.get_by_text("Undone: verdict.").wait_for()


def test_letters_in_a_field_are_text_and_no_command(page: Page, served: str) -> None:
    page.goto(f"{served}/orders/case/3")
    page.get_by_placeholder("why (kept with the verdict)").press_sequentially("cefnuz?j")
    assert page.get_by_placeholder("why (kept with the verdict)").input_value() == "cefnuz?j"
    assert page.url.endswith("/orders/case/3")
    page.get_by_placeholder("why (kept with the verdict)").blur()
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("c")  # not while the help is open
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.get_by_role("button", name="Close", exact=True).click()


def test_cases_are_chosen_and_judged_together(page: Page, served: str) -> None:
    page.goto(f"{served}/orders/{NIGHT}")
    page.get_by_label("Select all on this page").check()
    assert page.get_by_text("Verdict on the selected cases (4)").is_visible()
    page.get_by_label("Select case 1", exact=True).uncheck()
    page.get_by_label("Select case 2", exact=True).uncheck()
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("heading", name="Confirmed for 2 cases?").wait_for()
    page.get_by_role("link", name="Cancel").click()
    page.wait_for_url(f"**/orders/{NIGHT}")


def test_a_filter_takes_effect_when_it_is_chosen(page: Page, served: str) -> None:
    page.goto(f"{served}/orders/{NIGHT}")
    page.get_by_label("Cause").select_option("items")
    page.wait_for_url("**cause=items**")
    assert page.locator("tr[data-row]").count() == 1


def test_everything_works_without_scripts(browser: Browser, served: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{served}/orders/case/4")
    page.get_by_role("button", name="expected").click()
    page.get_by_text("Case 4: expected, for 1 flag.").wait_for()
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("Undone: verdict.").wait_for()
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_screens_fit_and_axe_finds_nothing_serious(
    browser: Browser, served: str, width: int, scheme: Any, request: pytest.FixtureRequest
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, found = watch(context.new_page()), {}
    folder = request.config.getoption("--screenshots")
    for screen in SCREENS:
        page.goto(f"{served}/orders/{screen}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), screen
        problems = Axe().run(page).response["violations"]
        found[screen] = [
            (one["id"], one["nodes"][0]["html"][:200]) for one in problems if one["impact"] in ("serious", "critical")
        ]
        if folder:
            page.screenshot(
                path=f"{folder}/desk-{screen.partition('?')[0].replace('/', '-')}-{width}-{scheme}.png", full_page=True
            )
    context.close()
    assert not any(found.values()), found
