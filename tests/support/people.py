"""People at the desk, each with a browser, and the night that they look at."""

import re
from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx
from fastapi.testclient import TestClient

from flows.desk.access import User, hash_token

NIGHT = date(2026, 7, 1)
TOKENS = {"ann": "token of ann", "ben": "token of ben", "pia": "token of pia", "rex": "token of rex"}
USERS = {
    "ann": User(role="judge", token=hash_token(TOKENS["ann"])),
    "ben": User(role="judge", token=hash_token(TOKENS["ben"])),
    "pia": User(role="promote", token=hash_token(TOKENS["pia"])),
    "rex": User(role="read", token=hash_token(TOKENS["rex"])),
}


@dataclass
class Browser:
    """A browser in which somebody is signed in."""

    client: TestClient

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def read(self, path: str) -> str:
        """A page, white space as one space."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return " ".join(answer.text.split())

    def key(self, path: str = "/orders/queue") -> str:
        found = re.search(r'data-form-key="(\w+)"', self.client.get(path).text)
        assert found
        return found[1]

    def post(self, path: str, **form: Any) -> httpx.Response:
        """Send a form, and follow to the page that it leads to."""
        return self.client.post(path, data={"form_key": self.key(), **form})

    def say(self, path: str, **form: Any) -> str:
        """What the page after a form says."""
        return "; ".join(re.findall(r'<p class="message \w+">(.*?)</p>', self.post(path, **form).text))
