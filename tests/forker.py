"""Forks a process for each command line that it reads: torch is imported once, not in each.

A line of stdin is JSON: words as in `python WORDS`, the environment, and a path. It is answered,
before another may be written, by the number of the process, which writes to the path with `.out`
and `.err` behind it. `.code` is there when the process has ended, with its exit code, negative for
a signal.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import sys
from pathlib import Path

import conftest  # noqa: F401
import torch.distributed  # noqa: F401

from vpltool.clip.load import import_open_clip
from vpltool.stages import find_stages


def words_of_process() -> list[str]:
    """Fork until no more lines come; returns in the forked processes alone."""
    running: dict[int, str] = {}
    while True:
        for process in list(running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                code = Path(running.pop(process))
                # Whoever has lost interest has deleted the folder.
                with contextlib.suppress(FileNotFoundError):
                    code.write_text(str(os.waitstatus_to_exitcode(status)))
                    code.rename(code.with_suffix(".code"))
        if not select.select([sys.stdin], [], [], 0.01)[0]:
            continue
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        words, environment, path = json.loads(line)
        process = os.fork()
        if not process:
            os.environ.clear()
            os.environ.update(environment)
            for number, name in enumerate((os.devnull, f"{path}.out", f"{path}.err")):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
            return list(words)
        running[process] = path
        print(process, flush=True)


if __name__ == "__main__":
    import_open_clip()
    for _found in find_stages().values():
        assert _found.stage
    first, *rest = words_of_process()
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
