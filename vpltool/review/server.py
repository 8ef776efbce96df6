"""The page over HTTP, for the browser of one person on this machine.

A token in the address becomes a cookie. A request needs it, a `Host` that is this machine's (a name
of a stranger's could point here), and to change something an `Origin` that is this page.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import secrets
import sys
import threading
import zlib
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vpltool import __version__
from vpltool.errors import VplError
from vpltool.json_text import JsonObject
from vpltool.pictures.colours import class_palette
from vpltool.review import work
from vpltool.review.desk import Conflict, Desk, Pictures
from vpltool.review.training import Training

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": ("index.html", "text/html"), "/review.css": ("review.css", "text/css"),
          **{f"/{name}.js": (f"{name}.js", "text/javascript")
             for name in ("review", "canvas", "net", "lists")}}
"""All files that are served, by address: no other address becomes a path."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
                               "'self' data:; connect-src 'self'; base-uri 'none'; form-action "
                               "'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin"}

_LONGEST = 16 << 20
"""Bytes of a request at most: all pixels of a grid, and their base64."""


class ReviewServer(ThreadingHTTPServer):
    """The server: a desk, and who may sit at it."""

    daemon_threads = True

    def __init__(self, desk: Desk, host: str, port: int, token: str) -> None:
        """Bind the address; port 0: any free one."""
        super().__init__((host, port), _Handler)
        self.desk, self.token, self.host = desk, token, host
        self.pictures, self.training = Pictures(), Training(desk)
        self.cookie = f"vpltool-review-{self.server_port}"

        # Heavy packages are imported, and the first photo is read, while the browser is opened.
        threading.Thread(target=self._warm, daemon=True).start()

    def _warm(self) -> None:
        with contextlib.suppress(OSError, VplError):
            for key in self.desk.ids[:1]:
                file = _file(self, {"id": key})
                self.pictures.photo(*file)
                self.pictures.regions(*file)

    @property
    def address(self) -> str:
        """Where a browser finds the page, token included."""
        name = self.host if self.host not in ("", "0.0.0.0") else "127.0.0.1"
        return f"http://{name}:{self.server_port}/?token={self.token}"

    def serves(self, named: str) -> bool:
        """Tell whether a `Host` header means this server, and no name that a stranger chose."""
        name, _, port = named.rpartition(":")
        if port != str(self.server_port):
            return False
        local = ("127.0.0.1", "localhost")
        if self.host in local:
            return name in local
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return name in (self.host, "localhost")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has closed its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    server: ReviewServer

    def version_string(self) -> str:
        return "vpltool"

    def log_message(self, *_args: object) -> None:
        """Write no log: the address holds the token."""

    def do_GET(self) -> None:
        self._handle("GET", _GET)

    def do_POST(self) -> None:
        self._handle("POST", _POST)

    def _handle(self, method: str, table: JsonObject) -> None:
        try:
            self._answer(method, table)
        except ConnectionError:
            raise
        except (KeyError, Conflict, VplError, OSError, ValueError, TypeError) as error:
            self._fail(*_refusal(error))

    def _answer(self, method: str, table: JsonObject) -> None:
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if not self._may_come(method, address.path, query):
            pass
        elif method == "GET" and address.path in _FILES:
            name, kind = _FILES[address.path]
            self._send((_PAGE / name).read_bytes(), f"{kind}; charset=utf-8")
        elif address.path not in table:
            self._fail(404, "there is no such address")
        else:
            found = table[address.path](self.server, self._body() if method == "POST" else query)
            if isinstance(found, tuple):
                self._send(*found)
            else:
                self._send(json.dumps(found).encode(), "application/json")

    def _may_come(self, method: str, path: str, query: dict[str, str]) -> bool:
        host = self.headers.get("Host", "")
        if not self.server.serves(host):
            self._fail(403, "this server is for another host name")
        elif method == "POST" and self.headers.get("Origin") != f"http://{host}":
            self._fail(403, "this request comes from another page")
        elif path == "/" and self._same(query.get("token", "")):
            self._send(b"", "text/plain", 303, {
                "Location": "/", "Set-Cookie": f"{self.server.cookie}={self.server.token}; "
                                               "HttpOnly; SameSite=Strict; Path=/"})
        elif not self._same(self._cookie()):
            self._fail(403, "open the address that `vpltool review` has printed, with its token")
        else:
            return True
        return False

    def _same(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self.server.token.encode())

    def _cookie(self) -> str:
        try:
            held = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return ""
        return held.value if held else ""

    def _body(self) -> JsonObject:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= _LONGEST:
            self.close_connection = True
            raise ValueError("the request is too long")
        body = json.loads(self.rfile.read(length))
        if not isinstance(body, dict):
            raise ValueError("the request is no object")
        return body

    def _fail(self, status: int, message: str) -> None:
        # What a refused request still sends is not read.
        self.close_connection = self.command == "POST" or self.close_connection
        self._send(json.dumps({"error": message}).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200,
              more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Cache-Control": "no-store"} | _HEADERS | (more or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _refusal(error: Exception) -> tuple[int, str]:
    """The status and the words for what went wrong."""
    if isinstance(error, Conflict):
        return 409, "this photo was changed in another window"
    if isinstance(error, VplError):
        return 422, "; ".join(filter(None, (error.message, error.hint)))
    if isinstance(error, KeyError):
        return 404, f"there is no {error}"
    return (422, f"the photo cannot be read: {error}") if isinstance(error, OSError) else (
        400, str(error))


Answer = JsonObject | tuple[object, ...]


def _start(server: ReviewServer, _query: dict[str, str]) -> Answer:
    desk, flat = server.desk, class_palette()
    names = ["background", *desk.workspace.classes]
    index = {name: number for number, name in enumerate(names)}
    states = desk.states()
    return {
        "name": desk.workspace.name, "version": __version__, "shown": desk.shown.name,
        "classes": names, "colours": [flat[3 * number:3 * number + 3]
                                      for number in range(len(names))],
        "photos": [[key, [index[tag] for tag in desk.photos[key].tags], states.get(key, "new")]
                   for key in desk.ids],
        "order": desk.order, "orders": work.ORDERS, "split": desk.split,
        "layers": ["computed", *work.other_layers(desk.workspace, desk.split)],
        "newest": desk.journal.newest, "training": server.training.state()}


def _poll(server: ReviewServer, query: dict[str, str]) -> Answer:
    with server.desk.lock:
        return {"newest": server.desk.journal.newest, "shown": server.desk.shown.name,
                "states": server.desk.states(int(query.get("since", "0"))),
                "training": server.training.state()}


def _bytes(content: bytes, size: tuple[int, ...]) -> Answer:
    """Send an array; the browser inflates it."""
    return zlib.compress(content, 1), "application/octet-stream", 200, {
        "Content-Encoding": "deflate", "X-Size": f"{size[1]}x{size[0]}"}


def _labels(server: ReviewServer, query: dict[str, str]) -> Answer:
    labels = server.desk.labels(query["id"], query.get("layer", ""))
    return _bytes(labels.tobytes(), labels.shape)


def _file(server: ReviewServer, query: dict[str, str]) -> tuple[Path, float]:
    path = server.desk.workspace.image_path(server.desk.photo(query["id"]))
    return path, path.stat().st_mtime


def _regions(server: ReviewServer, query: dict[str, str]) -> Answer:
    size, content = server.pictures.regions(*_file(server, query))
    return _bytes(content[int(query["scale"]) % len(content)], size)


def _picture(draw: str) -> object:
    def answer(server: ReviewServer, query: dict[str, str]) -> Answer:
        return getattr(server.pictures, draw)(*_file(server, query)), "image/jpeg", 200, {
            "Cache-Control": "private, max-age=300"}
    return answer


def _edit(server: ReviewServer, body: JsonObject) -> Answer:
    x, y, w, h = (int(value) for value in body["box"])
    tags = body.get("tags")
    return server.desk.edit(
        str(body["id"]), int(body["version"]), str(body["op"]), str(body["what"]), (x, y, w, h),
        base64.b64decode(body["pixels"]), str(body["state"]),
        None if tags is None else tuple(map(int, tags)))


def _move(back: bool) -> object:
    return lambda server, body: server.desk.move(str(body["id"]), int(body["version"]), back)


_GET = {"/api/start": _start, "/api/poll": _poll, "/api/labels": _labels, "/api/regions": _regions,
        "/api/photo": lambda server, query: server.desk.describe(query["id"]),
        "/api/order": lambda server, query: server.desk.ordered(query["by"]),
        "/photo": _picture("photo"), "/thumb": _picture("thumb")}
_POST = {"/api/edit": _edit, "/api/undo": _move(True), "/api/redo": _move(False),
         "/api/train": lambda server, _body: server.training.begin(),
         "/api/stop": lambda server, _body: server.training.stop()}
