"""Puts the desk together: the screens, signing in and out, headers, errors, and the files that pages load."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from flows.config.settings import Settings
from flows.desk import beside, case, entity, explorer, model, nights, queue, rules, tonight
from flows.desk.access import Access, stay_here
from flows.desk.tonight import describe_detectors
from flows.desk.view import (
    ENVIRONMENT,
    Act,
    Look,
    Room,
    SignInNeeded,
    check_address,
    read_act,
    read_body,
    read_form,
    set_cookie,
    wants_json,
)
from tasks.errors import (
    BatchMissing,
    CaseMissing,
    CaseRefused,
    NightjarError,
    PromotionRefused,
    RecordMissing,
    ServiceUnreachable,
)
from tasks.stores.snapshot import Snapshot
from tasks.stores.warehouse import Warehouse

# tonight is last: its address matches what no other has
SCREENS = (case, beside, entity, explorer, queue, nights, model, rules, tonight)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
THREADS = 12  # few enough not to hinder each other, and some may wait for a store
HEALTH = "/-/health"
MOST_SIGN_IN_BYTES = 16_000
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATUS = {
    BatchMissing: HTTPStatus.NOT_FOUND,
    CaseMissing: HTTPStatus.NOT_FOUND,
    RecordMissing: HTTPStatus.NOT_FOUND,
    CaseRefused: HTTPStatus.CONFLICT,
    PromotionRefused: HTTPStatus.CONFLICT,
    ServiceUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
}
common = APIRouter()


def create_app(settings: Settings, access: Access, hosts: list[str] | None = None) -> FastAPI:
    """The application. hosts: the names under which it may be asked for; None: any.

    Raises what opening the warehouse raises.
    """
    warehouse = Warehouse(settings.warehouse_url, settings.lost_after_s)
    warehouse.migrate()
    app = FastAPI(title="Nightjar desk", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_limit_threads)
    app.state.room = Room(settings, access, warehouse, Snapshot(warehouse, settings.home_path / "desk"))
    app.mount("/-/static", StaticFiles(packages=[("flows.desk", "static")]), name="static")
    app.include_router(common)
    for screen in SCREENS:
        app.include_router(screen.router, dependencies=[Depends(check_address)])
    app.add_exception_handler(SignInNeeded, ask_to_sign_in)
    app.add_exception_handler(NightjarError, show_error)
    app.add_exception_handler(StarletteHTTPException, show_refusal)
    app.add_exception_handler(RequestValidationError, show_no_page)
    app.add_exception_handler(Exception, show_fault)
    app.middleware("http")(add_headers)
    if hosts:  # a name that leads here and is not ours may be an attack from another page
        app.add_middleware(Hosts, allowed_hosts=hosts)
    return app


class Hosts(TrustedHostMiddleware):
    """Lets only some names through. A probe, which knows only an address, may ask for health."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        checked = self.app if scope.get("path") == HEALTH else super().__call__
        await checked(scope, receive, send)


@asynccontextmanager
async def _limit_threads(app: FastAPI) -> AsyncIterator[None]:
    """Pages that take turns finish sooner than pages that compete. At the end, remove the snapshot's copy."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield
    app.state.room.snapshot.close()


async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Forbid what our pages never do, and keep pages out of caches."""
    return _protect(request, await call_next(request))


def _protect(request: Request, answer: Response) -> Response:
    answer.headers.update(HEADERS)
    if not request.url.path.startswith("/-/static/"):
        answer.headers["Cache-Control"] = "no-store"
    return answer


@common.get("/")
def list_detectors(look: Look) -> Response:
    """The detectors; the only one at once."""
    names = look.room.detectors
    if len(names) == 1:
        return RedirectResponse(f"/{quote(names[0], safe='')}", HTTPStatus.SEE_OTHER)
    return look.render("detectors.html", detectors=describe_detectors(look))


@common.get("/-/sign-in")
def show_sign_in(request: Request, to: str = "/") -> Response:
    """The form that takes a token."""
    return _show_sign_in(request, to)


def _show_sign_in(request: Request, to: str, problem: str = "", status: int = 200) -> Response:
    room: Room = request.app.state.room
    key = request.cookies.get(room.access.cookie, "")
    is_new = room.access.get_session(request) is None
    if is_new:
        key = room.access.begin_session(None)
    shown = {"to": to, "problem": problem, "form_key": room.access.sign_form(key), "by_header": room.access.header}
    answer = HTMLResponse(ENVIRONMENT.get_template("sign_in.html").render(**shown), status)
    if is_new:
        set_cookie(answer, key, room.access)
    return answer


@common.post("/-/sign-in")
async def sign_in(request: Request) -> Response:
    """Sign in with a token."""
    room: Room = request.app.state.room
    form = dict(read_form(await read_body(request, MOST_SIGN_IN_BYTES)))
    to = form.get("to", "/")
    if not room.access.is_own_form(request, form.get("form_key", "")):
        return _show_sign_in(request, to, "The page had expired. Try again.", HTTPStatus.FORBIDDEN)
    name = room.access.find_token(form.get("token", "").strip())
    if name is None:
        return _show_sign_in(request, to, "Unknown token.", HTTPStatus.UNAUTHORIZED)
    room.access.end_session(request.cookies.get(room.access.cookie, ""))
    answer = RedirectResponse(stay_here(to, "/"), HTTPStatus.SEE_OTHER)
    set_cookie(answer, room.access.begin_session(name), room.access)
    return answer


@common.post("/-/sign-out")
def sign_out(act: Annotated[Act, Depends(read_act)]) -> Response:
    """Sign out."""
    act.room.access.end_session(act.request.cookies.get(act.room.access.cookie, ""))
    return RedirectResponse("/-/sign-in", HTTPStatus.SEE_OTHER)


@common.get(HEALTH)
def show_health() -> Response:
    """Whether the desk runs: for a supervisor."""
    return PlainTextResponse("ok")


@common.get("/favicon.ico")
def show_icon() -> Response:
    """The icon of the tab."""
    icon = files("flows.desk").joinpath("static/icon.svg").read_bytes()
    return Response(icon, media_type="image/svg+xml")


def ask_to_sign_in(request: Request, error: Exception) -> Response:
    """Lead a person to the form, and refuse a program."""
    room: Room = request.app.state.room
    if room.access.header:
        return PlainTextResponse("The proxy named no one whom the desk knows.", HTTPStatus.FORBIDDEN)
    is_page = request.method == "GET" and "authorization" not in request.headers
    if not is_page or wants_json(request):
        return PlainTextResponse("Sign in first.", HTTPStatus.UNAUTHORIZED)
    to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/-/sign-in?{urlencode({'to': to})}", HTTPStatus.SEE_OTHER)


def show_error(request: Request, error: Any) -> Response:
    """An error of ours, with its parts."""
    return _explain(request, STATUS.get(type(error), HTTPStatus.BAD_REQUEST), error.parts)


def show_refusal(request: Request, error: Any) -> Response:
    """What the web says: not found, not allowed."""
    found = {"Not Found": "There is no such page."}.get(error.detail, error.detail)
    return _explain(request, error.status_code, {"what": found})


def show_no_page(request: Request, error: Exception) -> Response:
    """An address with a text where a number belongs."""
    return _explain(request, HTTPStatus.NOT_FOUND, {"what": "There is no such page."})


def show_fault(request: Request, error: Exception) -> Response:
    """A bug: in the log with all its steps, on the page without them."""
    logging.getLogger("nightjar.desk").exception("%s %s failed", request.method, request.url.path, exc_info=error)
    parts = {"what": "The desk failed; nothing was changed.", "todo": "the desk's log has the reason"}
    return _protect(request, _explain(request, 500, parts))  # which comes from outside of add_headers


def _explain(request: Request, status: int, parts: dict[str, str]) -> Response:
    if wants_json(request):
        return JSONResponse(parts, status)
    is_fragment = "hx-request" in request.headers
    template = ENVIRONMENT.get_template("problem.html" if is_fragment else "error.html")
    return HTMLResponse(template.render(parts=parts, back=_find_back(request)), status)


def _find_back(request: Request) -> str:
    """The page of ours, with its filters, from which somebody came."""
    host, _, path = request.headers.get("referer", "").partition("://")[2].partition("/")
    return stay_here(f"/{path}", "/") if host == request.headers.get("host") else "/"
