"""Several processes that compile the CRF's loops at once."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOLVE = """
import sys
import numpy as np
from vpltool.core.crf import mean_field
from vpltool.core.crf_kernels import PRESETS
labels = int(sys.argv[1])
scores = np.random.default_rng(0).random((labels, 6, 7), np.float32)
photo = np.random.default_rng(1).integers(0, 255, (6, 7, 3), np.uint8)
np.save(sys.argv[2], mean_field(photo, scores, PRESETS["weclip"], backend=sys.argv[3]))
"""


def start(cache: Path, labels: int, out: Path, backend: str = "numba") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SOLVE, str(labels), str(out), backend],
                            env={**os.environ, "NUMBA_CACHE_DIR": str(cache)})


def locks(cache: Path) -> list[Path]:
    return list(cache.rglob("compiling.lock"))


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert start(cache, 2, tmp_path / "first.npy").wait() == 0
    with pytest.raises(subprocess.TimeoutExpired), locks(cache)[0].open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = start(cache, 3, tmp_path / "3.npy")
        waiting.wait(timeout=8)
    # Another process has compiled meanwhile; all now run what is on the disk.
    others = [start(cache, labels, tmp_path / f"{labels}.npy") for labels in (4, 5)]
    assert [process.wait() for process in (waiting, *others)] == [0, 0, 0]
    for labels in (3, 4, 5):
        assert start(cache, labels, tmp_path / f"again-{labels}.npy").wait() == 0
        assert start(cache, labels, tmp_path / f"torch-{labels}.npy", "torch").wait() == 0
        found = np.load(tmp_path / f"again-{labels}.npy")
        assert np.array_equal(found, np.load(tmp_path / f"{labels}.npy"))
        assert np.abs(found - np.load(tmp_path / f"torch-{labels}.npy")).max() < 1e-4
