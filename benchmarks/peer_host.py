"""Runs a peer's own script from its checkout, in rounds: `peers.py` starts it.

    python peer_host.py CHECKOUT SCRIPT ROUNDS [OPTIONS OF THE SCRIPT]

It imports nothing of vpltool, so that it runs in any environment in which the peer runs. The script
is executed as it stands, but for two things. Where there is no GPU, the device that it names is the
CPU, and nothing is rounded to half precision, as CLIP-ES does with its positions on a CPU, too. And
the bar over its photos goes over them once a round: before each it waits for a line on stdin, after
each it writes the round's seconds. With 0 rounds the bar is a plain one.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

NAMED_GPU = re.compile(r"""(["'])cuda:\{\}\1\.format\([^)]*\)""")
"""How scripts name the GPU of a process."""


def main() -> None:
    """Execute the script as the main program."""
    import torch
    import tqdm

    checkout, script, rounds = Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3])
    # The protocol goes where the script's own messages do not.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def bar(photos: Iterable[Any], *_: object, **__: object) -> Iterator[Any]:
        photos = list(photos)
        if not rounds:
            yield from photos
            return
        for _round in range(rounds):
            print("ready", file=told, flush=True)
            sys.stdin.readline()
            started = time.perf_counter()
            yield from photos
            print(time.perf_counter() - started, file=told, flush=True)

    tqdm.tqdm = bar
    source = (checkout / script).read_text("utf-8")
    if not torch.cuda.is_available():
        source = NAMED_GPU.sub('"cpu"', source)
        torch.Tensor.half = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    os.chdir(checkout)
    sys.path[0], sys.argv = str(checkout), [script, *sys.argv[4:]]
    exec(compile(source, script, "exec"), {"__name__": "__main__", "__file__": script})


if __name__ == "__main__":
    main()
