"""Ports of this machine, and a way to a server that can be cut."""

import select
import socket
import threading
from contextlib import suppress


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class CutProxy:
    """A way to a server that is cut after so many of its answers; from then on nobody gets through.

    farewell: what a PostgreSQL server says before it goes, as SQLSTATE and text; None: nothing.
    """

    def __init__(self, port: int, answers: int, farewell: tuple[str, str] | None) -> None:
        self.left, self._server_port = answers, port
        self._farewell = make_farewell(*farewell) if farewell else b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes its thread
        self._thread.join()
        self._listening.close()

    def _accept(self) -> None:
        """One connection at a time."""
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, suppress(OSError):
                if self.left > 0:
                    with socket.create_connection(("127.0.0.1", self._server_port)) as server:
                        self._pass_on(client, server)
                else:
                    client.sendall(self._farewell)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(1 << 16)
                self.left -= source is server and bool(data)
                if self.left <= 0:
                    client.sendall(self._farewell)
                if not data or self.left <= 0:
                    return
                (client if source is server else server).sendall(data)


def make_farewell(state: str, text: str) -> bytes:
    """PostgreSQL's message of a fatal error."""
    fields = b"".join(kind + value.encode() + b"\0" for kind, value in ((b"S", "FATAL"), (b"C", state), (b"M", text)))
    return b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"
