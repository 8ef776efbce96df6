"""The HTTP server of the page, for one person's browser on this machine.

A token in the address becomes a cookie. A request needs the cookie, a `Host` of this machine (a
foreign name could resolve to it), and for changes this page as its `Origin`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import json
import secrets
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vpltool.errors import VplError
from vpltool.json_text import JsonObject
from vpltool.lazy import np, npt
from vpltool.pictures import colours
from vpltool.review import orders, pictures
from vpltool.review.desk import Conflict, Desk
from vpltool.review.training import Training, words_of

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {"/" if file.suffix == ".html" else f"/{file.name}": file
          for file in (Path(__file__).parent / "page").iterdir() if file.suffix in _KINDS}
"""All served files by address; no other address becomes a path."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
                               "'self' data:; connect-src 'self'; base-uri 'none'; form-action "
                               "'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}

_LONGEST = 16 << 20
"""Maximum size of a request in bytes: all pixels of a grid in base64."""

_FAILED: dict[type[Exception], tuple[int, str]] = {
    Conflict: (409, ""), VplError: (422, ""), KeyError: (404, "there is no "),
    OSError: (422, "the photo cannot be read: "), ValueError: (400, ""), TypeError: (400, "")}
"""Status and prefix of the message by type of error."""

_LOCAL = ("127.0.0.1", "localhost")


class ReviewServer(ThreadingHTTPServer):
    """The server of a desk, with access control."""

    daemon_threads = True

    def __init__(self, desk: Desk, host: str, port: int, token: str) -> None:
        """Bind the address; port 0: any free one."""
        super().__init__((host, port), _Handler)
        self.desk, self.token, self.host = desk, token, host
        self.training = Training(desk)
        self.cookie = f"vpltool-review-{self.server_port}"
        # Import heavy packages and read the first photo while the browser opens.
        threading.Thread(target=self._warm, daemon=True).start()

    def _warm(self) -> None:
        with contextlib.suppress(OSError, VplError):
            for key in self.desk.ids[:1]:
                pictures.screen(self.desk.file(key))
                self.desk.regions(key)

    @property
    def address(self) -> str:
        """Address of the page, including the token."""
        name = self.host if self.host not in ("", "0.0.0.0") else "127.0.0.1"
        return f"http://{name}:{self.server_port}/?token={self.token}"

    def serves(self, named: str) -> bool:
        """Return whether a `Host` header names this server, and not a foreign name."""
        name, _, port = named.rpartition(":")
        if port != str(self.server_port):
            return False
        if self.host in _LOCAL:
            return name in _LOCAL
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name in (self.host, "localhost")

    def is_token(self, words: str) -> bool:
        """Return whether a text is the token."""
        return secrets.compare_digest(words.encode(), self.token.encode())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections closed by the browser."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    server: ReviewServer

    def version_string(self) -> str:
        return "vpltool"

    def log_message(self, *_args: Any) -> None:
        """Write no log: the address holds the token."""

    def do_GET(self) -> None:
        self._handle(_GET)

    def do_POST(self) -> None:
        self._handle(_POST)

    def _handle(self, table: Mapping[str, Callable[[ReviewServer, JsonObject], Answer]]) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        try:
            if refusal := self._refusal(address.path, query):
                self._fail(403, refusal)
            elif address.path == "/" and "token" in query:
                self._send("text/plain", b"", 303, {
                    "Location": "/", "Set-Cookie": f"{self.server.cookie}={self.server.token}; "
                                                   "HttpOnly; SameSite=Strict; Path=/"})
            elif self.command == "GET" and address.path in _FILES:
                file = _FILES[address.path]
                self._send(f"{_KINDS[file.suffix]}; charset=utf-8", file.read_bytes())
            elif address.path not in table:
                self._fail(404, "there is no such address")
            else:
                self._send(*table[address.path](
                    self.server, self._body() if self.command == "POST" else query))
        except ConnectionError:
            raise
        except tuple(_FAILED) as error:
            status, why = next(_FAILED[kind] for kind in _FAILED if isinstance(error, kind))
            self._fail(status, why + words_of(error))

    def _refusal(self, path: str, query: Mapping[str, str]) -> str:
        """Return why a request is refused; empty if it is not."""
        host = self.headers.get("Host", "")
        if not self.server.serves(host):
            return "this server is for another host name"
        if self.command == "POST" and self.headers.get("Origin") != f"http://{host}":
            return "this request comes from another page"
        if path == "/" and self.server.is_token(query.get("token", "")):
            return ""
        try:
            held = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            held = None
        return "" if held and self.server.is_token(held.value) else (
            "open the address that `vpltool review` has printed, with its token")

    def _body(self) -> JsonObject:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= _LONGEST:
            raise ValueError("the request is too long")
        body = json.loads(self.rfile.read(length))
        if not isinstance(body, dict):
            raise ValueError("the request is no object")
        return body

    def _fail(self, status: int, message: str) -> None:
        # The rest of a refused request is not read.
        self.close_connection = self.command == "POST" or self.close_connection
        self._send("application/json", json.dumps({"error": message}).encode(), status)

    def _send(self, kind: str, content: bytes, status: int = 200,
              more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {}), "Content-Type": kind,
                            "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


Answer = tuple[Any, ...]
"""Arguments of `_Handler._send`."""


def _json(found: object) -> Answer:
    return "application/json", json.dumps(found).encode()


def _array(about: JsonObject, numbers: npt.NDArray[Any]) -> Answer:
    """Send a line of JSON and an array (…, height, width), deflated."""
    height, width = numbers.shape[-2:]
    line = json.dumps(about | {"width": width, "height": height}) + "\n"
    content = zlib.compress(line.encode() + np.ascontiguousarray(numbers).tobytes(), 1)
    return "application/octet-stream", content, 200, {"Content-Encoding": "deflate"}


def _start(server: ReviewServer, _query: JsonObject) -> Answer:
    desk, flat = server.desk, colours.class_palette()
    names, states = ["background", *desk.workspace.classes], desk.states()
    return _json({
        "name": desk.workspace.name, "classes": names, "split": desk.split, "shown": desk.what,
        "colours": [flat[3 * number:3 * number + 3] for number in range(len(names))],
        "photos": [[key, desk.workspace.indices_of(desk.photos[key]), states.get(key, "new")]
                   for key in desk.ids],
        "order": desk.order, "orders": list(orders.ORDERS), "scales": desk.scales,
        "layers": ["computed", *desk.layers],
        "newest": desk.journal.newest, "training": server.training.state()})


def _poll(server: ReviewServer, query: JsonObject) -> Answer:
    desk = server.desk
    with desk.lock:
        return _json({"newest": desk.journal.newest, "shown": desk.what, "states": desk.states(
            int(query.get("since", "0"))), "training": server.training.state()})


def _picture(draw: Callable[[pictures.Stamped], bytes]) -> Any:
    return lambda server, query: ("image/jpeg", draw(server.desk.file(query["id"])), 200,
                                  {"Cache-Control": "private, max-age=300"})


def _edit(server: ReviewServer, body: JsonObject) -> Answer:
    x, y, width, height = (int(value) for value in body["box"])
    tags = body.get("tags")
    server.desk.edit(str(body["id"]), int(body["version"]), str(body["op"]), str(body["what"]),
                     (x, y, width, height), base64.b64decode(body["pixels"]), str(body["state"]),
                     None if tags is None else tuple(map(int, tags)))
    return _photo(server, body)


def _move(server: ReviewServer, body: JsonObject, *, back: bool) -> Answer:
    server.desk.move(str(body["id"]), int(body["version"]), back=back)
    return _photo(server, body)


def _photo(server: ReviewServer, query: JsonObject) -> Answer:
    return _array(*server.desk.describe(str(query["id"])))


_GET: dict[str, Callable[[ReviewServer, JsonObject], Answer]] = {
    "/api/start": _start, "/api/poll": _poll, "/api/photo": _photo,
    "/api/layer": lambda server, query: _array({}, server.desk.layer(query["id"], query["layer"])),
    "/api/regions": lambda server, query: _array({}, server.desk.regions(query["id"])),
    "/api/order": lambda server, query: _json(server.desk.ordered(query["by"])),
    "/photo": _picture(pictures.screen), "/thumb": _picture(pictures.thumb)}
_POST: dict[str, Callable[[ReviewServer, JsonObject], Answer]] = {
    "/api/edit": _edit, "/api/undo": functools.partial(_move, back=True),
    "/api/redo": functools.partial(_move, back=False),
    "/api/train": lambda server, _body: _json(server.training.begin()),
    "/api/stop": lambda server, _body: _json(server.training.stop())}
