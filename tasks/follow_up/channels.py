"""Send one message to a channel with Apprise: mail, Slack, Teams, webhooks and over a hundred more, each by its URL."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from tasks.errors import ParamsInvalid, hide_password

SHOWN = 300  # characters of what Apprise says
LOCK = Lock()  # Apprise says why only in its log, which all threads share


def send_message(url: str, title: str, body: str) -> str:
    """Send a message; returns why it failed, or "". Nothing that a channel does raises an error."""
    try:
        return _send(url, title, body)
    except Exception as error:  # noqa: BLE001 - a channel's trouble must not become that of a night
        return hide_password(f"{type(error).__name__}: {error}")[:SHOWN]


def _send(url: str, title: str, body: str) -> str:
    import apprise

    with _capturing() as log:
        channel = apprise.Apprise()
        if not channel.add(url):
            return "its URL is not one that Apprise knows"
        if channel.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT):
            return ""
        said = " ".join(log.getvalue().split())
    return hide_password(said or "it did not accept the message")[:SHOWN]


@contextmanager
def _capturing() -> Iterator[io.StringIO]:
    """Read what Apprise logs, and let nobody else: it may contain an address with its secrets."""
    import apprise

    logger = logging.getLogger("apprise")
    with LOCK, apprise.LogCapture(level=logging.WARNING, fmt="%(message)s", delete=True) as log:
        propagates, logger.propagate = logger.propagate, False
        try:
            yield log
        finally:
            logger.propagate = propagates


def check_url(name: str, url: str) -> None:
    """Raise ParamsInvalid if Apprise cannot use a channel's URL; the message does not show it."""
    import apprise

    with _capturing():
        is_known = apprise.Apprise().add(url)
    if not is_known:
        raise ParamsInvalid(
            f"The address of channel {name} is not one that Apprise knows.",
            where=f"NIGHTJAR_CHANNEL_{name.upper()}",
            got=f"a URL of the kind {url.partition('://')[0][:20]!r}" if "://" in url else "no URL",
            expected="an Apprise URL, such as mailtos://USER:PASSWORD@SERVER?to=ADDRESS or json://HOST/PATH",
            todo="correct it; https://appriseit.com/services/ lists all kinds",
        )
