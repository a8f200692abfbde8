"""Who may see the desk, and who may act: by token, by a proxy's header, on this machine; and only by forms of ours."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from people import NIGHT, TOKENS, USERS, Browser

from flows.cli.desk import listen
from flows.config.settings import Settings
from flows.desk.access import Access, User, bracket, check_access, hash_token, is_loopback, read_users
from flows.desk.app import create_app
from tasks.errors import ParamsInvalid

SCREENS = ("/orders/2026-07-01", "/orders/case/1", "/orders/queue", "/orders/blind", "/orders/explorer")
ACTS = (
    "/orders/case/1/judge",
    "/orders/case/1/undo",
    "/orders/case/1/lock",
    "/orders/next",
    "/orders/verdicts",
    "/orders/2026-07-01/note",
    "/orders/sample",
    "/orders/approval/1",
)


@pytest.mark.parametrize("path", SCREENS)
def test_nobody_sees_a_page_without_signing_in(settings: Settings, path: str) -> None:
    client = TestClient(create_app(settings, Access(USERS)))
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/-/sign-in?to=%2Forders%2F")
    assert client.get(path, headers={"accept": "application/json"}).status_code == 401
    for wrong in ("", "x", hash_token(TOKENS["ann"])):  # the file's hash is no token
        assert client.get(path, headers={"authorization": f"Bearer {wrong}"}).status_code == 401


@pytest.mark.parametrize("path", SCREENS)
def test_every_page_forbids_what_it_does_not_need(ann: Browser, path: str) -> None:
    answer = ann.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert " style=" not in answer.text and "<script>" not in answer.text and " onclick" not in answer.text


def test_another_name_is_refused_but_a_probe_may_ask_by_address(settings: Settings) -> None:
    client = TestClient(create_app(settings, Access(USERS), ["desk.example"]), follow_redirects=False)
    assert client.get("/orders", headers={"host": "desk.example"}).status_code == 303
    assert client.get("/orders", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/-/health", headers={"host": "10.0.0.7:8890"}).text == "ok"


def test_a_wrong_token_is_told_and_a_right_one_leads_to_the_page_that_was_asked_for(settings: Settings) -> None:
    client = TestClient(create_app(settings, Access(USERS)))
    browser = Browser(client)
    form = client.get("/-/sign-in").text
    key = form.split('name="form_key" value="')[1].split('"')[0]
    wrong = client.post("/-/sign-in", data={"form_key": key, "token": "guess", "to": "/orders/case/1"})
    assert wrong.status_code == 401 and "Unknown token" in wrong.text
    right = client.post("/-/sign-in", data={"form_key": key, "token": TOKENS["ann"], "to": "/orders/case/1"})
    assert right.url.path == "/orders/case/1"
    assert "httponly" in str(right.history[0].headers["set-cookie"]).lower()
    assert "samesite=lax" in str(right.history[0].headers["set-cookie"]).lower()  # a link in a mail leads here too
    client.post("/-/sign-out", data={"form_key": browser.key()})
    assert client.get("/orders/case/1", follow_redirects=False).status_code == 303


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "/\n/x", ""]
)
def test_signing_in_never_leads_to_another_site(settings: Settings, to: str) -> None:
    client = TestClient(create_app(settings, Access(USERS)))
    key = client.get("/-/sign-in").text.split('name="form_key" value="')[1].split('"')[0]
    form = {"form_key": key, "token": TOKENS["ann"], "to": to}
    answer = client.post("/-/sign-in", data=form, follow_redirects=False)
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("path", ACTS)
def test_whoever_may_only_read_changes_nothing(open_browser: Callable[[str], Browser], path: str) -> None:
    answer = open_browser("rex").post(path, verdict="confirmed", case="1", note="x", day=str(NIGHT))
    assert answer.status_code == 403
    assert "needs the role judge; rex has the role read" in answer.text


@pytest.mark.parametrize("path", ACTS)
def test_a_form_of_another_site_is_refused(ann: Browser, path: str) -> None:
    form = {"verdict": "confirmed", "case": "1", "note": "x", "day": str(NIGHT)}
    assert ann.client.post(path, data=form).status_code == 403
    assert ann.client.post(path, data={**form, "form_key": "0" * 64}).status_code == 403
    key = ann.key()
    foreign = {"origin": "https://evil.example"}
    assert ann.client.post(path, data={**form, "form_key": key}, headers=foreign).status_code == 403


def test_two_desks_on_one_host_keep_people_signed_in(settings: Settings) -> None:
    first, second = (Access(USERS, cookie=f"nightjar_desk_{port}") for port in (8890, 8891))
    browser = TestClient(create_app(settings, first))
    key = browser.get("/-/sign-in").text.split('name="form_key" value="')[1].split('"')[0]
    browser.post("/-/sign-in", data={"form_key": key, "token": TOKENS["ann"], "to": "/orders/queue"})
    other = TestClient(create_app(settings, second), cookies=browser.cookies)
    assert {*other.get("/-/sign-in").cookies} == {"nightjar_desk_8891"}
    assert browser.get("/orders/queue", follow_redirects=False).status_code == 200


def test_who_only_opens_the_sign_in_page_signs_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.desk.access.MOST_SESSIONS", 8)
    access = Access(USERS)
    signed_in = [access.begin_session("ann") for _ in range(8)]
    strangers = [access.begin_session(None) for _ in range(100)]
    known = {*access._sessions}
    assert known >= {*signed_in, strangers[-1]} and len(known) <= 16
    newest = access.begin_session("ben")
    assert {newest, *signed_in[4:]} <= {*access._sessions} and signed_in[0] not in access._sessions


def test_signing_in_takes_no_large_form(settings: Settings) -> None:
    client = TestClient(create_app(settings, Access(USERS)))
    assert client.post("/-/sign-in", data={"token": "x" * 20_000}).status_code == 413


@pytest.mark.parametrize(
    ("referer", "back"),
    [
        ("http://testserver/orders/queue?view=all&x=%22", "/orders/queue?view=all&amp;x=%22"),
        ("http://testserver//evil.example/x", "/"),
        ("http://evil.example/orders/queue", "/"),
        ("http://[", "/"),
        ("nonsense", "/"),
        ("", "/"),
    ],
)
def test_back_from_an_error_leads_to_the_page_of_ours_with_its_filters(ann: Browser, referer: str, back: str) -> None:
    answer = ann.get("/orders/case/99", headers={"referer": referer})
    assert answer.status_code == 404
    assert f'<a href="{back}">Back</a>' in answer.text


@pytest.mark.parametrize("key", ["é", "\0", "0" * 64])
def test_a_form_key_of_other_characters_is_a_wrong_one(ann: Browser, key: str) -> None:
    assert ann.client.post("/orders/case/1/take", data={"form_key": key}).status_code == 403


def test_the_page_of_a_bug_forbids_as_much_as_any_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(create_app(settings, Access({}, local="kim")), raise_server_exceptions=False)
    monkeypatch.setattr("flows.desk.queue.show_queue", lambda *_: 1 // 0)
    answer = client.get("/orders/queue")
    assert answer.status_code == 500 and "the desk's log has the reason" in answer.text.replace("&#39;", "'")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"


def test_a_form_of_one_browser_is_worth_nothing_in_another(ann: Browser, ben: Browser) -> None:
    assert ben.client.post("/orders/case/1/take", data={"form_key": ann.key()}).status_code == 403


def test_a_program_acts_with_its_token_alone(settings: Settings) -> None:
    client = TestClient(create_app(settings, Access(USERS)))
    headers = {"authorization": f"Bearer {TOKENS['ann']}", "accept": "application/json"}
    answer = client.post("/orders/case/1/judge", data={"verdict": "confirmed"}, headers=headers)
    assert answer.json() == {"done": "Case 1: confirmed, for 2 flags."}
    case = client.get("/orders/case/1", headers=headers).json()["case"]
    assert (case["verdict"], case["state"]) == ("confirmed", "closed")


def test_a_header_counts_only_from_the_proxy_and_only_for_people_of_the_file(settings: Settings) -> None:
    users = {"ann": User(role="judge")}
    access = Access(users, header="x-remote-user", proxies=frozenset({"10.0.0.9"}))
    app = create_app(settings, access)
    behind, elsewhere = TestClient(app, client=("10.0.0.9", 1)), TestClient(app, client=("10.0.0.8", 1))
    assert behind.get("/orders/case/1", headers={"x-remote-user": "ann"}).status_code == 200
    assert behind.get("/orders/case/1", headers={"x-remote-user": "eve"}).status_code == 403
    assert behind.get("/orders/case/1").status_code == 403
    assert elsewhere.get("/orders/case/1", headers={"x-remote-user": "ann"}).status_code == 403


def test_a_person_without_a_token_cannot_sign_in_with_an_empty_one(settings: Settings) -> None:
    assert Access({"ann": User(role="judge")}).find_token("") is None


def test_a_name_that_only_leads_here_is_refused(settings: Settings) -> None:
    client = TestClient(create_app(settings, Access({}, local="kim"), ["localhost", "127.0.0.1"]))
    assert client.get("/-/health", headers={"host": "localhost"}).text == "ok"
    assert client.get("/orders/queue", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(("host", "expected"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("desk", "desk")])
def test_an_address_has_ipv6_in_brackets(settings: Settings, host: str, expected: str) -> None:
    assert bracket(host) == expected
    client = TestClient(create_app(settings, Access({}, local="kim"), [bracket(host)]))
    assert client.get("/orders/queue", headers={"host": f"{expected}:8890"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("desk", False)]
)
def test_only_a_loopback_address_needs_no_sign_in(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    check_access(host, USERS, None)
    if expected:
        check_access(host, {}, None)
    else:
        with pytest.raises(ParamsInvalid, match="without a sign-in"):
            check_access(host, {}, "x-remote-user")


@pytest.mark.parametrize(
    "text",
    [
        "ann: judge",
        "ann: {role: boss}",
        "- ann",
        "ann: {role: judge, tokn: x}",
        "ann: {role: judge, token: secret}",
        "{",
        "\xff",
    ],
)
def test_a_bad_file_of_people_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "desk.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ParamsInvalid) as raised:
        read_users(path)
    assert raised.value.where == str(path)
    assert "new-token" in raised.value.todo


def test_a_taken_port_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParamsInvalid, match=f"127.0.0.1:{port}"):
            listen("127.0.0.1", port)


def test_a_hash_may_be_written_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "desk.yaml").write_text(f"ann: {{role: judge, token: {hash_token('secret').upper()}}}")
    assert Access(read_users(tmp_path / "desk.yaml")).find_token("secret") == "ann"


def test_what_new_token_prints_is_a_line_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.main import execute

    execute(["desk", "--new-token", "ada", "--role", "promote"])
    token, line = capsys.readouterr().out.splitlines()
    (tmp_path / "desk.yaml").write_text(line.removeprefix("line for the file: "))
    access = Access(read_users(tmp_path / "desk.yaml"))
    assert access.find_token(token.removeprefix("token for ada: ")) == "ada"
    assert access.users["ada"].role == "promote"
