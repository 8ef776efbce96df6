"""A client of `review`'s server, and the server as a process of its own."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKEN = "0123456789abcdefTOKEN"


class Client:
    """Requests as the page makes them; headers can be replaced."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.headers = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}",
                        "Cookie": f"vpltool-review-{port}={TOKEN}"}

    def raw(self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None
            ) -> tuple[int, bytes, Any]:
        """Status, content and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, None if body is None else json.dumps(body),
                           self.headers | (headers or {}))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
            ) -> tuple[int, Any]:
        """Status and JSON; of an array, the line before it; other content as bytes."""
        status, content, answered = self.raw(method, path, headers, body)
        if answered["Content-Encoding"] == "deflate":
            content = zlib.decompress(content).split(b"\n", 1)[0]
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content

    def array(self, path: str) -> npt.NDArray[np.uint8]:
        """Bytes of an array (…, height, width)."""
        status, content, _ = self.raw("GET", path)
        line, numbers = zlib.decompress(content).split(b"\n", 1)
        about = json.loads(line)
        assert status == 200
        return np.frombuffer(numbers, np.uint8).reshape(-1, about["height"], about["width"])

    def json(self, method: str, path: str) -> Any:
        """The JSON of an answer that must be well."""
        status, found = self.ask(method, path)
        assert status == 200, found
        return found

    def until(self, ready: Callable[[], Any], seconds: float = 60) -> Any:
        """Ask until something is so."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.1)
        return found


def start_process(work: Path, port: int = 0) -> tuple[subprocess.Popen[str], int]:
    """Start `vpltool review` in a process; return it and its port."""
    child = subprocess.Popen(
        [sys.executable, "-m", "vpltool", "-C", str(work), "review", "--order", "file", "--port",
         str(port), "--token", TOKEN], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
            threading.Thread(target=child.stderr.read, daemon=True).start()
            return child, int(found[1])
    raise AssertionError("it has printed no address")
