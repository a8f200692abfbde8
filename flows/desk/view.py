"""What every route gets: the detector, its stores to read, who asks, and how to answer."""

import re
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Depends, HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic_core import to_json

from flows.config.params import detector_names
from flows.config.settings import Settings
from flows.config.setup import Setup, load_setup
from flows.desk.access import ROLES, Access, Person, Role, stay_here
from tasks.errors import NightjarError
from tasks.follow_up.actions import Desk
from tasks.follow_up.cases import MEANING
from tasks.rows.describe import show_value
from tasks.rows.params import DetectorParams
from tasks.stores.bulk import NO_NUL
from tasks.stores.site import Site
from tasks.stores.snapshot import Snapshot
from tasks.stores.warehouse import Warehouse

MOST_FORM_BYTES = 5_000_000
WAIT_S = 10.0  # for a night that is being published, or other people
Known = TypeVar("Known")
ENVIRONMENT = Environment(
    loader=ChoiceLoader([PackageLoader("flows.desk"), PackageLoader("tasks.pages")]),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["value"] = show_value
ENVIRONMENT.filters["thousands"] = lambda number: f"{number:,}"
ENVIRONMENT.filters["quoted"] = lambda text: quote(str(text), safe="")


def read_number(text: str, otherwise: int = 1) -> int:
    """A whole number from 1 on as it is in an address, of at most nine digits; anything else is `otherwise`."""
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,8}", text) else otherwise


def read_date(text: str) -> date | None:
    """A date of an address or a form, or None."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def read_day(text: str) -> date:
    """The date in a page's address; without one there is no such page."""
    if (day := read_date(text)) is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "Not Found")
    return day


def wants_json(request: Request) -> bool:
    """Whether a program asks, which reads no pages."""
    return "application/json" in request.headers.get("accept", "")


@dataclass
class Room:
    """What all pages share: settings, people, and what was read of params.yaml and the warehouse."""

    settings: Settings
    access: Access
    warehouse: Warehouse
    snapshot: Snapshot
    _names: tuple[int, list[str]] = (0, [])
    _setups: dict[str, tuple[Any, Setup]] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def remember(self, key: Hashable, read: Callable[[], Known]) -> Known:
        """What never changes once it is there: read at most once, unless it was empty."""
        if key not in self._known:
            found = read()
            if not found:
                return found
            self._known[key] = found
        known: Known = self._known[key]
        return known

    @property
    def detectors(self) -> list[str]:
        """The names in params.yaml."""
        stamp = _stamp(self.settings.project / "params.yaml")
        if self._names[0] != stamp:
            self._names = stamp, detector_names(self.settings.project)
        return self._names[1]

    def load(self, name: str) -> Setup:
        """A detector, read again when its params or contract have changed. Raises ParamsInvalid."""
        stamp = tuple(_stamp(path) for path in self._files(name))
        known = self._setups.get(name)
        if known is None or known[0] != stamp:
            if name not in self.detectors:
                raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no detector {name}.")
            with self._lock:
                known = self._setups[name] = stamp, load_setup(name, self.settings)
        return known[1]

    def _files(self, name: str) -> tuple[Path, ...]:
        project = self.settings.project
        return project / "params.yaml", project / "contracts" / f"{name}.yaml"


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@dataclass(frozen=True)
class Page:
    """One request for a page."""

    request: Request
    room: Room
    person: Person
    now: datetime
    detector: str = ""

    @cached_property
    def setup(self) -> Setup:
        """The detector. Its site's warehouse only reads."""
        found = self.room.load(self.detector)
        return replace(found, site=replace(found.site, warehouse=self.room.snapshot.latest()))

    @property
    def site(self) -> Site:
        """The detector's stores."""
        return self.setup.site

    @property
    def params(self) -> DetectorParams:
        """The detector's params."""
        return self.setup.configured.detector

    def link(self, *parts: object) -> str:
        """The whole address of one of the detector's pages, for a message: behind a proxy too."""
        access, here = self.room.access, self.request.url
        is_known = not access.hostnames or here.hostname in [name.lower() for name in access.hostnames]
        host = here.netloc if is_known else access.hostnames[0]
        return f"{'https' if access.is_https else here.scheme}://{host}{self.url(*parts)}"

    @property
    def is_part(self) -> bool:
        """Whether a page asks for a part of itself. Messages are not for parts, which nobody waits for."""
        return "hx-request" in self.request.headers

    @property
    def query(self) -> dict[str, str]:
        """What follows the ? of the address; of several values of a name, the last."""
        return dict(self.request.query_params)

    def with_query(self, **changes: object) -> str:
        """The query of the page's address with other values."""
        return urlencode({**self.query, **changes})

    def render(self, template: str, status: int = 200, **facts: Any) -> Response:
        """The page as HTML, or the facts as JSON for a program that asks for it."""
        if wants_json(self.request):
            text = to_json(jsonable_encoder(facts), inf_nan_mode="null")
            return Response(text, status, media_type="application/json")
        key = self.request.cookies.get(self.room.access.cookie, "")
        session = self.room.access.get_session(self.request)
        is_new = session is None
        if session is None:
            key = self.room.access.begin_session(None if self.person.is_sure else self.person.name)
        messages = session.messages[:] if session and not self.is_part else []
        if session and not self.is_part:
            session.messages.clear()
        shown = {
            "page": self,
            "person": self.person,
            "detector": self.detector,
            "zone": self.site.zone if self.detector else UTC,
            "now": self.now,
            "messages": messages,
            "layout": "part.html" if self.is_part else "base.html",
            "form_key": self.room.access.sign_form(key),
            "url": self.url,
        }
        answer = HTMLResponse(ENVIRONMENT.get_template(template).render(**shown | facts), status)
        if is_new:
            set_cookie(answer, key, self.room.access)
        return answer

    def url(self, *parts: object, **query: object) -> str:
        """The address of one of the detector's pages: url("case", 12) is /DETECTOR/case/12."""
        path = "/".join(["", quote(self.detector, safe=""), *(quote(str(part), safe="") for part in parts)])
        wanted = urlencode({name: value for name, value in query.items() if value not in (None, "")})
        return f"{path}?{wanted}" if wanted else path


@dataclass(frozen=True)
class Act(Page):
    """One request to do something. Its site's warehouse is the real one."""

    form: Mapping[str, str] = field(default_factory=dict)
    values: tuple[tuple[str, str], ...] = ()  # the form with all values of a name
    body: bytes = b""

    @cached_property
    def setup(self) -> Setup:
        """The detector."""
        return self.room.load(self.detector)

    @property
    def desk(self) -> Desk:
        """With what cases are judged. Nobody waits long for a night at a desk."""
        return Desk(self.room.warehouse, self.detector, self.params.cases, self.person.name, self.now, WAIT_S)

    @property
    def verdict(self) -> str:
        """The verdict in the form."""
        verdict = self.form.get("verdict", "")
        if verdict not in MEANING:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "Choose a verdict.")
        return verdict

    def chosen(self, name: str) -> list[str]:
        """All values of a name in the form."""
        return [value for key, value in self.values if key == name]

    def done(self, url: str, message: str) -> Response:
        """Go to a page, which says what was done and shows what was written, unless somebody writes at that moment."""
        with suppress(NightjarError):
            self.room.snapshot.refresh(WAIT_S)
        return self.go(url, "done", message)

    def go(self, url: str, kind: str, message: str) -> Response:
        """Go to a page with a message."""
        if wants_json(self.request):
            return JSONResponse({kind: message})
        if message and (session := self.room.access.get_session(self.request)):
            session.messages.append((kind, message))
        return RedirectResponse(url, HTTPStatus.SEE_OTHER)

    @property
    def back(self) -> str:
        """The page with the form, or the detector's."""
        return stay_here(self.form.get("back", ""), self.url())


def set_cookie(answer: Response, key: str, access: Access) -> None:
    """Let a browser keep its key. Lax: a link in a mail leads to the page; forms of other sites are refused anyway."""
    answer.set_cookie(access.cookie, key, httponly=True, samesite="lax", secure=access.is_https, path="/")


class SignInNeeded(Exception):  # noqa: N818 - the name says the state, as ours do
    """Nobody is signed in."""


def get_person(request: Request) -> Person:
    """Who asks. Raises SignInNeeded."""
    room: Room = request.app.state.room
    person = room.access.identify(request)
    if person is None:
        raise SignInNeeded
    return person


def check_address(request: Request) -> None:
    """No page has a number of more than nine digits, which a database cannot hold, or a NUL in its address."""
    texts = (request.scope["path"], *request.query_params.keys(), *request.query_params.values())
    if not read_number(request.path_params.get("number", "1"), 0) or any("\0" in text for text in texts):
        raise HTTPException(HTTPStatus.NOT_FOUND, "Not Found")


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, of at most `most` bytes."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The form is too large.")
    return body


def read_form(body: bytes) -> tuple[tuple[str, str], ...]:
    """Names and values of a form, without NUL, which PostgreSQL cannot keep."""
    text = body.decode(errors="replace")
    return tuple((name, value.replace("\0", NO_NUL)) for name, value in parse_qsl(text, keep_blank_values=True))


def look(request: Request, person: Annotated[Person, Depends(get_person)]) -> Page:
    """A page of a detector, or of all."""
    room: Room = request.app.state.room
    return Page(request, room, person, datetime.now(UTC), request.path_params.get("detector", ""))


async def read_act(request: Request, person: Annotated[Person, Depends(get_person)]) -> Act:
    """What a person asks to do. Refuses a form of another site, and one that is too large."""
    room: Room = request.app.state.room
    body = await read_body(request, MOST_FORM_BYTES)
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    values = read_form(body) if is_form else ()
    form = dict(values)
    given = form.pop("form_key", "") or request.headers.get("x-form-key", "")
    if not person.is_sure and not room.access.is_own_form(request, given):
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "This form has expired or comes from another site. Reload its page and try again."
        )
    detector = request.path_params.get("detector", "")
    return Act(request, room, person, datetime.now(UTC), detector, form, values, body)


def _needing(role: Role) -> Any:
    def check(act: Annotated[Act, Depends(read_act)]) -> Act:
        if not act.person.may(role):
            raise HTTPException(
                HTTPStatus.FORBIDDEN, f"This needs the role {role}; {act.person.name} has the role {act.person.role}."
            )
        return act

    return Depends(check)


Look = Annotated[Page, Depends(look)]
Read = Annotated[Act, _needing(ROLES[0])]
Judge = Annotated[Act, _needing(ROLES[1])]
Promote = Annotated[Act, _needing(ROLES[2])]
