"""Starting the processes of a run as torchrun would, without its own seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**more: object) -> dict[str, str]:
    """The environment of a process that imports this project, with one thread each."""
    kept = {name: value for name, value in os.environ.items()
            if name not in ("RANK", "WORLD_SIZE") and not name.startswith("SLURM_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | {
        name: str(value) for name, value in more.items()}


def start(count: int, words: Sequence[object]) -> list[subprocess.Popen[str]]:
    """Start `python WORDS` as each rank of `count`."""
    group = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [subprocess.Popen(
        [sys.executable, *map(str, words)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment(RANK=rank, **group)) for rank in range(count)]


def launch(count: int, words: Sequence[object], seconds: float = 120) -> list[tuple[str, str]]:
    """Run `python WORDS` as each rank of `count`; what each wrote to stdout and stderr."""
    ranks = start(count, words)
    said = [rank.communicate(timeout=seconds) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(err for _, err in said)
    return said
