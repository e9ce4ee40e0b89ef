"""A page for one person on this machine: 127.0.0.1 only, every answer behind a token, nothing from another site.

The address that is printed ends in #TOKEN. Browsers do not send that part; the page's script sends it as a header. So
neither another user of the machine nor a page of another site (whose requests carry a foreign Host, Origin or no token) can
see pictures or decide.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from npusim.errors import BadInputError, NpusimError
from npusim.training.chain import pictures

HOST = "127.0.0.1"
MOST_BYTES = 64 * 1024
"""Of a request's body."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class RefusedError(Exception):
    """The page asked for what cannot be done now; the sentence is shown on it."""


class Page(Protocol):
    """What a page shows and does."""

    @property
    def assets(self) -> dict[str, str]:
        """Address -> file of this package, such as "/" -> "curate.html"."""

    def state(self) -> dict[str, Any]:
        """What is to be decided now, as JSON."""

    def act(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Do what a key or button asks for; the new state.

        Raises:
            RefusedError: it cannot be done.
        """

    def picture(self, name: str) -> Path | None:
        """The file of a picture that the page names."""

    @property
    def finished(self) -> bool:
        """Whether the person said that all is done."""


class Server(ThreadingHTTPServer):
    """Serves one page until it is finished."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, page: Page, port: int = 0) -> None:
        """port: 0 takes a free one.

        Raises:
            BadInputError: the port is taken.
        """
        self.page, self.token, self.turn = page, secrets.token_urlsafe(24), threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise BadInputError(
                f"--port {port}: cannot be used ({error}); leave it out to take a free one"
            ) from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/#{self.token}"

    @property
    def hosts(self) -> tuple[str, str]:
        """Host headers of requests that were meant for us."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """End `serve_forever` from a request's thread."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""

    def do_GET(self) -> None:
        """The page, its scripts, its state, its pictures."""
        if not self._is_for_us():
            return
        address = urlsplit(self.path)
        if address.path in self.server.page.assets:
            name = self.server.page.assets[address.path]
            self._send(files(__package__).joinpath(name).read_bytes(), _TYPES[Path(name).suffix])
        elif not self._has_token(parse_qs(address.query).get("token", [""])[0]):
            self._fail(HTTPStatus.FORBIDDEN, "this needs the token at the end of the printed address")
        elif address.path == "/state":
            with self.server.turn:
                self._send_json(self.server.page.state())
        elif address.path.startswith("/picture/"):
            self._send_picture(address.path.removeprefix("/picture/"))
        else:
            self._fail(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """A decision."""
        if not self._is_for_us():
            return
        if not self._has_token(""):
            self._fail(HTTPStatus.FORBIDDEN, "this needs the token at the end of the printed address")
            return
        wanted = self._body()
        if wanted is None or self.path != "/act":
            self._fail(HTTPStatus.BAD_REQUEST, "this is no decision")
            return
        with self.server.turn:
            try:
                self._send_json(self.server.page.act(wanted))
            except RefusedError as error:
                self._send_json(self.server.page.state() | {"refused": str(error)}, HTTPStatus.CONFLICT)
            except NpusimError as error:  # the disk is full: the page says so, and nothing counts as decided
                self._fail(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
            finished = self.server.page.finished
        if finished:
            self.server.stop()

    def _is_for_us(self) -> bool:
        """Refuse a foreign Host (a name of another site that leads here) and requests that another site made."""
        hosts = self.server.hosts
        named = self.headers.get("Host") in hosts
        origin = self.headers.get("Origin", f"http://{hosts[0]}")
        site = self.headers.get("Sec-Fetch-Site", "none")
        if named and origin in [f"http://{host}" for host in hosts] and site in ("none", "same-origin"):
            return True
        self._fail(HTTPStatus.FORBIDDEN, f"only pages of http://{hosts[0]} may ask")
        return False

    def _has_token(self, given: str) -> bool:
        given = self.headers.get("X-Npusim-Token", given)
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())

    def _body(self) -> dict[str, Any] | None:
        """The JSON object of a request; None if it is none."""
        length = self.headers.get("Content-Length", "")
        sized = length.isascii() and length.isdigit() and int(length) <= MOST_BYTES
        plain = self.headers.get("Content-Type", "").split(";")[0].strip() == "application/json"
        if not plain or not sized:
            self.close_connection = True
            return None
        try:
            found = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _send_picture(self, name: str) -> None:
        path = self.server.page.picture(name)
        try:
            kind = _TYPES.get(path.suffix.lower()) if path else None
            if path is not None and kind is not None and kind.startswith("image/"):
                self._send(path.read_bytes(), kind)
            elif path is not None:
                self._send(pictures.as_png(path), "image/png")
            else:
                self._fail(HTTPStatus.NOT_FOUND, "there is no such picture")
        except (OSError, pictures.UnusablePictureError):
            self._fail(HTTPStatus.NOT_FOUND, "this picture cannot be read")

    def _send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _fail(self, status: HTTPStatus, said: str) -> None:
        self._send_json({"refused": said}, status)

    def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve(page: Page, port: int, show: Callable[[str], None]) -> bool:
    """Serve until the person finishes or presses Ctrl-C. Returns whether the person finished."""
    with Server(page, port) as server:
        show(server.address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return False
    return page.finished
