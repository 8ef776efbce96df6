"""What each rank of `test_together.py` runs: commands in a workspace, as torchrun would start them.

Arguments: the workspace, a file with the commands as JSON, and a port for each of them. It prints a
line of JSON for each: exit code, stdout and stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from conftest import run_in_process


def main() -> None:
    work, commands = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    for words, port in zip(commands, sys.argv[3:], strict=True):
        os.environ["MASTER_PORT"] = port
        result = run_in_process(*words, work=work)
        print(json.dumps([result.code, result.out, result.err]), flush=True)


if __name__ == "__main__":
    main()
