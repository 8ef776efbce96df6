"""Processes that compile the CRF's loops, and others that load what those left."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from launching import Forked, environment

SOLVE = """
import sys
import numpy as np
from vpltool.core.crf import mean_field
from vpltool.core.crf_kernels import KERNELS
photo = np.random.default_rng(1).integers(0, 255, (6, 7, 3), np.uint8)
for labels in map(int, sys.argv[1:]):
    scores = np.random.default_rng(0).random((labels, 6, 7), np.float32)
    ours, plain = (mean_field(photo, scores, KERNELS["weclip"], backend=backend)
                   for backend in ("numba", "torch"))
    assert np.abs(ours - plain).max() < 1e-4, labels
"""


def test_code_of_several_processes_is_told_apart(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def start(*labels: int) -> Forked:
        return Forked(["-c", SOLVE, *labels], environment(NUMBA_CACHE_DIR=cache))

    def end(*processes: Forked) -> None:
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said

    end(start(2))
    end(start(3), start(5))
    # A loop that others call is in their code, too, under its own name.
    names = Counter(name for code in cache.rglob("crf_numba.*.nbc")
                    for name in set(re.findall(rb"_ZN08NumbaEnv7vpltool\w+", code.read_bytes()))
                    if code.name.split("-")[0].rpartition(".")[2].encode() in name)
    assert len(names) >= 14
    assert [name for name, files in names.items() if files > 1] == []
    end(start(2, 3, 5))
