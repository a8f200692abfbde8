"""Channels on this machine: a mail server and a webhook, and what they were sent."""

import email
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from aiosmtpd.controller import Controller
from network import find_free_port


@dataclass
class Inbox:
    """The messages of one channel, each with its title and body; `url` is for Apprise."""

    url: str
    messages: list[tuple[str, str]] = field(default_factory=list)
    is_down: bool = False  # refuses what it is sent

    @property
    def titles(self) -> list[str]:
        return [title for title, _ in self.messages]


class _Mails:
    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.inbox.is_down:
            return "451 try again later"
        mail: Message = email.message_from_bytes(envelope.content, policy=default)
        body = mail.get_body(("plain",))  # type: ignore[attr-defined]
        self.inbox.messages.append((str(mail["Subject"]), body.get_content().strip().replace("\r\n", "\n")))
        return "250 OK"


@contextmanager
def serve_mail() -> Iterator[Inbox]:
    port = find_free_port()
    inbox = Inbox(f"mailto://127.0.0.1:{port}?from=nightjar@example.org&to=oncall@example.org&mode=insecure")
    controller = Controller(_Mails(inbox), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield inbox
    finally:
        controller.stop()


@contextmanager
def serve_webhook() -> Iterator[Inbox]:
    inbox = Inbox("")

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not inbox.is_down:
                inbox.messages.append((sent["title"], sent["message"]))
            self.send_response(503 if inbox.is_down else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    inbox.url = f"json://127.0.0.1:{server.server_port}/hook"
    try:
        yield inbox
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
