"""Starting the processes of a run as torchrun would, without its own seconds."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    """The environment of a process that imports this project, with one thread each.

    It sees no GPU: each process would need its own.
    """
    kept = {name: value for name, value in os.environ.items()
            if name not in ("RANK", "WORLD_SIZE") and not name.startswith("SLURM_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""} | {
        name: str(value) for name, value in more.items()}


@functools.cache
def _forker() -> subprocess.Popen[str]:
    """It ends with this process, which holds its stdin."""
    return subprocess.Popen([sys.executable, Path(__file__).with_name("forker.py")], text=True,
                            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env=environment())


class Forked:
    """A process that runs `python WORDS`, as `subprocess.Popen` has it, without torch's seconds.

    It is forked from one that has imported torch and open_clip: not for tests of starts, or of
    variables that these read. Linux alone forks such a process safely.
    """

    def __init__(self, words: Sequence[object], environment: dict[str, str]) -> None:
        if sys.platform != "linux":
            pytest.skip("processes are forked after torch was imported")
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "rank"
        forker = _forker()
        assert forker.stdin is not None and forker.stdout is not None
        print(json.dumps([list(map(str, words)), environment, str(self._path)]),
              file=forker.stdin, flush=True)
        self.pid = int(forker.stdout.readline())

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self._path.with_suffix(".code")
        return int(code.read_text()) if code.exists() else None

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        limit = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < limit, f"{self.pid} has not ended"
            time.sleep(0.01)
        return (self._path.with_suffix(".out").read_text(),
                self._path.with_suffix(".err").read_text())

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(count: int, words: Sequence[object]) -> list[Forked]:
    """Start `python WORDS` as each rank of `count`."""
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [Forked(words, environment(RANK=rank, **group)) for rank in range(count)]


def launch(count: int, words: Sequence[object], seconds: float = 120) -> list[tuple[str, str]]:
    """Run `python WORDS` as each rank of `count`; what each wrote to stdout and stderr."""
    ranks = start(count, words)
    said = [rank.communicate(timeout=seconds) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(err for _, err in said)
    return said
