"""Who may use the desk: people and their roles, sign-in by token or by a proxy's header, and forms that are our own.

On a loopback address the person who runs the desk is signed in. Elsewhere a file lists the people: a YAML mapping of
name to role, and to the SHA-256 of a token unless a proxy signs people in.
"""

import hmac
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.errors import ParamsInvalid

Role = Literal["read", "judge", "promote"]
ROLES: tuple[Role, ...] = ("read", "judge", "promote")  # each may do what the one before it may
SESSION_S = 12 * 3600
MOST_SESSIONS = 10_000  # of people who are signed in, and as many others


@dataclass(frozen=True)
class Person:
    """Who asks. is_sure: by a token of a program, which no other page can make a browser send."""

    name: str
    role: Role
    is_sure: bool = False

    def may(self, role: Role) -> bool:
        """Whether the person has a role, or one above it."""
        return ROLES.index(self.role) >= ROLES.index(role)


class User(BaseModel):
    """A line of the file of people. token: the SHA-256 of it, hexadecimal; None: only a proxy signs them in."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Role
    token: Annotated[str, StringConstraints(to_lower=True, pattern="^[0-9A-Fa-f]{64}$")] | None = None


@dataclass
class Session:
    """A browser: who has signed in with it, and what to tell it on its next page."""

    person: str | None
    expires: float
    messages: list[tuple[str, str]] = field(default_factory=list)  # (kind, text)


@dataclass
class Access:
    """The people, and the browsers that they use.

    local: who is signed in without asking. header: the name of the header with which `proxies` (addresses) name people.
    cookie: its name; browsers send a cookie to all ports of a host. hostnames: under which people reach the desk.
    """

    users: Mapping[str, User]
    local: str | None = None
    header: str | None = None
    proxies: frozenset[str] = frozenset()
    is_https: bool = False
    cookie: str = "nightjar_desk"
    hostnames: tuple[str, ...] = ()
    _sessions: dict[str, Session] = field(default_factory=dict)
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def identify(self, request: Request) -> Person | None:
        """The person who asks, or None if nobody is signed in."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            name = self.find_token(token.strip())
            return self._person(name, is_sure=True)
        if self.header:
            address = request.client.host if request.client else ""
            return self._person(request.headers.get(self.header)) if address in self.proxies else None
        if self.local:
            return Person(self.local, "promote")
        session = self.get_session(request)
        return self._person(session.person if session else None)

    def _person(self, name: str | None, is_sure: bool = False) -> Person | None:
        user = self.users.get(name) if name else None
        return Person(name, user.role, is_sure) if name and user else None

    def find_token(self, token: str) -> str | None:
        """Whose token it is."""
        given = hash_token(token)
        return next((name for name, user in self.users.items() if hmac.compare_digest(user.token or "", given)), None)

    def get_session(self, request: Request) -> Session | None:
        """The browser that asks, if it is known."""
        session = self._sessions.get(request.cookies.get(self.cookie, ""))
        return session if session and session.expires > time.time() else None

    def begin_session(self, person: str | None) -> str:
        """A new browser; returns the value of its cookie.

        If there are too many, the oldest of the same kind (anonymous or signed in) are forgotten.
        """
        key, now = secrets.token_urlsafe(32), time.time()
        with self._lock:
            if len(self._sessions) >= MOST_SESSIONS:
                alike = [old for old, one in self._sessions.items() if (one.person is None) == (person is None)]
                for old in alike[: MOST_SESSIONS // 2] if len(alike) >= MOST_SESSIONS else ():
                    del self._sessions[old]  # the first are the oldest
            self._sessions[key] = Session(person, now + SESSION_S)
        return key

    def end_session(self, key: str) -> None:
        """Forget a browser."""
        with self._lock:
            self._sessions.pop(key, None)

    def sign_form(self, key: str) -> str:
        """What a form of our own carries for a browser."""
        return hmac.new(self._secret, key.encode(), sha256).hexdigest()

    def is_own_form(self, request: Request, given: str) -> bool:
        """Whether a form comes from a page of ours, opened in the same browser."""
        key, origin = request.cookies.get(self.cookie, ""), request.headers.get("origin")
        is_here = origin is None or origin.partition("://")[2] == request.headers.get("host")
        return bool(
            key in self._sessions and is_here and hmac.compare_digest(self.sign_form(key).encode(), given.encode())
        )


def stay_here(address: str, otherwise: str) -> str:
    """An address if it is a path of ours: browsers take //HOST and /\\HOST for another site, and leave out tabs."""
    return address if re.fullmatch(r"/(?![/\\])[^\x00-\x1f\x7f]*", address) else otherwise


def hash_token(token: str) -> str:
    """The SHA-256 of a token, hexadecimal."""
    return sha256(token.encode()).hexdigest()


def make_token() -> str:
    """A new token of 256 bits."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bracket(host: str) -> str:
    """A host as addresses have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def read_users(path: Path) -> dict[str, User]:
    """Read the file of people. Raises ParamsInvalid."""
    expected = "a mapping of name to {role: read, judge or promote, token: SHA-256}"
    try:
        document = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, User]).validate_python(document)
    except (OSError, UnicodeDecodeError, YAMLError, ValidationError) as error:
        got = " ".join(str(error).split("\n")[:3]) if isinstance(error, ValidationError) else str(error).split("\n")[0]
        raise ParamsInvalid(
            "The file of the desk's people cannot be read.",
            where=str(path),
            got=got,
            expected=expected,
            todo="correct it; nightjar desk --new-token NAME prints a line for it",
        ) from error


def check_access(host: str, users: Mapping[str, User], header: str | None) -> None:
    """Refuse to serve others without knowing who they are. Raises ParamsInvalid."""
    if is_loopback(host) or users:
        return
    raise ParamsInvalid(
        "The desk does not serve other machines without a sign-in.",
        where=f"--host {host}",
        got="no file of people" + (", which --user-header needs too: it has the roles" if header else ""),
        expected="--users FILE",
        todo="nightjar desk --new-token NAME prints a token and the line for FILE; or use --host 127.0.0.1",
    )
