"""Retraining with corrections in a child process, and the curve of scores.

The child runs the lines of a shell: `update`, `predict`, `eval`. Run as a module, this file is the
child; it reports progress on stdout in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import vpltool
from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import JsonObject, kinds, read_json, write_json
from vpltool.formats.manifest import MANIFEST
from vpltool.recipes.runner import run_line
from vpltool.review.desk import OWN, Desk
from vpltool.shell import command_line, program, to_shell

_UPDATE = "vpltool update"


class Training:
    """The child process of a desk, and its state for the page."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._lock = desk, threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._progress: JsonObject = {}

    @property
    def _scores(self) -> Path:
        return self._desk.path / OWN / "scores.json"

    def state(self) -> JsonObject:
        """Return the child's progress or result, its lines for a shell, and the curve."""
        desk = self._desk
        segmenter = segmenter_of(desk.path, desk.what)
        return {"runs": self._child is not None, "segmenter": segmenter, "curve": self._curve(),
                "lines": [line.replace("vpltool", shlex.join(program(desk.path)), 1)
                          for line in (_UPDATE, *steps(desk, segmenter, desk.split))],
                **self._progress}

    def begin(self) -> JsonObject:
        """Start the child, unless it is running.

        Raises:
            VplError: there is no segmenter.
        """
        desk = self._desk
        with self._lock:
            if self._child is None:
                segmenter = segmenter_of(desk.path, desk.what)
                if not segmenter:
                    raise VplError("there is no segmenter to train again",
                                   "`train_decoder()` trains the first one; then reload the page")
                # The curve begins before any correction.
                first = [] if self._curve() else steps(desk, segmenter, desk.scored["split"])
                todo = [*first, _UPDATE, *steps(desk, segmenter, desk.split)]
                self._progress = {"step": "starting", "title": "", "done": 0, "total": 0,
                                  "error": ""}
                _keep(desk.shown.path, desk.path / OWN / "rounds")
                # A folder `vpltool` in the current one, such as a clone, would be taken for it.
                paths = [str(Path(vpltool.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
                errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "vpltool.review.training", str(desk.path.resolve()),
                     json.dumps(todo)],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                    stdout=subprocess.PIPE, stderr=errors, text=True)
                threading.Thread(target=self._listen, args=(self._child, errors, segmenter),
                                 daemon=True).start()
        return self.state()

    def stop(self) -> JsonObject:
        """Terminate the child; finished results are kept."""
        if (child := self._child) is not None:
            child.terminate()
        return self.state()

    def _curve(self) -> list[JsonObject]:
        return read_json(self._scores, "")["rounds"] if self._scores.exists() else []

    def _listen(self, child: subprocess.Popen[str], errors: TextIO, segmenter: str) -> None:
        """Follow the child until it ends; what is wrong meanwhile is shown in the page."""
        try:
            with errors:
                self._follow(child, errors)
            if not child.returncode:
                self._desk.reopen(kinds.result_name("predictions", segmenter))
        except Exception as error:
            child.terminate()
            child.wait()
            self._progress["error"] = getattr(error, "message", str(error))
        finally:
            self._child = None

    def _follow(self, child: subprocess.Popen[str], errors: TextIO) -> None:
        states = list(self._desk.states().values())
        corrected = states.count("corrected") + states.count("accepted")
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                self._progress |= json.loads(line)
            if point := self._progress.pop("point", None):
                rounds = self._curve()
                rounds.append(point | {"photos": corrected if rounds else 0})
                write_json(self._scores, {"rounds": rounds})
        if child.wait() and not self._progress["error"]:
            errors.seek(0)
            why = next(filter(None, map(str.strip, reversed(errors.readlines()))), "")
            self._progress["error"] = ("training has stopped; what is finished is kept"
                                       + (f" ({why})" if why and child.returncode > 0 else ""))


def segmenter_of(path: Path, shown: str) -> str:
    """Return the segmenter to retrain: that of the shown masks, else the newest; empty: none."""
    kind, _, name = shown.partition("/")
    there = {file.stem: file.stat().st_mtime for file in kinds.results_of(path, "decoder")}
    own = name.removesuffix("-crf")
    return own if kind == "predictions" and own in there else max(there, key=there.__getitem__,
                                                                  default="")


def steps(desk: Desk, segmenter: str, split: str) -> list[str]:
    """Return the lines that predict a split with a segmenter, and score it."""
    predictions = kinds.result_path(desk.path, "predictions", segmenter, "")
    # Predictions are incomplete if a training was stopped during them.
    manifests = {name: predictions / name / MANIFEST
                 for name in (split, desk.scored["split"])}
    return [*(command_line("predict", {"split": name, "decoder": segmenter})
              for name, manifest in manifests.items()
              if not (manifest.exists() and read_json(manifest, "").get("complete"))),
            command_line("eval", {"what": kinds.result_name("predictions", segmenter),
                                  **desk.scored})]


def _keep(old: Path, rounds: Path) -> None:
    """Keep masks that will be replaced, as links, since new files replace old ones."""
    to = rounds / str(1 + sum(1 for _ in rounds.glob("*")))
    for path in old.rglob("*.png"):
        kept = to / path.relative_to(old)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copy2(path, kept)


class _JsonLines(console.Listener):
    """Progress as lines of JSON on stdout."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[console.Advance]:
        done = 0

        def advance(count: int = 1, text: str = "") -> None:
            nonlocal done
            done += count
            _report(title=title, done=done, total=total)

        advance(0)
        yield advance


def words_of(error: Exception) -> str:
    """Format an error in one line for the page, with commands as in a shell."""
    return to_shell(str(error).replace("\nhint: ", "; "))


def _report(**what: Any) -> None:
    # Go on if the page is closed.
    with contextlib.suppress(OSError):
        print(json.dumps(what), flush=True)


def main(path: Path, todo: Sequence[str]) -> int:
    """Run lines, report progress, and return the exit status."""
    with console.heard_by(_JsonLines()):
        try:
            for line in todo:
                _report(step=line, title="", done=0, total=0)
                call, found, _ = run_line(shlex.split(line)[1:], path)
                if call.found.name == "eval" and isinstance(found, Mapping):
                    score, measure = ((found["miou"], "mIoU") if "miou" in found
                                      else (found["mean"]["f1"], "F1 against tags"))
                    _report(point={"score": 100 * score, "measure": measure})
        except (VplError, OSError, RuntimeError, MemoryError) as problem:
            _report(error=words_of(problem))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
