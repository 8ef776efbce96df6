"""Training again with what is corrected: a child process, and the curve of what it brought.

The child runs the same lines as a shell would: `update`, `predict`, `eval`. Run as a module, this
file is the child; it says on stdout, in lines of JSON, how far it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import JsonObject, kinds, read_json, write_json
from vpltool.recipes.runner import run_line
from vpltool.review.desk import OWN, Desk
from vpltool.shell import command_line, program, to_shell

_UPDATE = "vpltool update"


class Training:
    """The child process of a desk, as the page sees it."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._lock = desk, threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._said: JsonObject = {}

    @property
    def _scores(self) -> Path:
        return self._desk.path / OWN / "scores.json"

    def state(self) -> JsonObject:
        """What the child does, or did; the lines for a shell; and the curve."""
        desk = self._desk
        segmenter = segmenter_of(desk.path, desk.what)
        return {"runs": self._child is not None, "segmenter": segmenter, "curve": self._curve(),
                "lines": [line.replace("vpltool", shlex.join(program(desk.path)), 1)
                          for line in (_UPDATE, *steps(desk, segmenter, desk.split))],
                **self._said}

    def begin(self) -> JsonObject:
        """Start the child, unless it runs.

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
                # The curve begins with the segmenter before any correction.
                first = [] if self._curve() else steps(desk, segmenter, desk.scored["split"])
                todo = [*first, _UPDATE, *steps(desk, segmenter, desk.split)]
                self._said = {"step": "starting", "title": "", "done": 0, "total": 0, "error": ""}
                _keep(desk.shown.path, desk.path / OWN / "rounds")
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "vpltool.review.training", str(desk.path.resolve()),
                     json.dumps(todo)],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                threading.Thread(target=self._listen, args=(self._child, segmenter),
                                 daemon=True).start()
        return self.state()

    def stop(self) -> JsonObject:
        """End the child; what it has finished is kept."""
        if (child := self._child) is not None:
            child.terminate()
        return self.state()

    def _curve(self) -> list[JsonObject]:
        rounds: list[JsonObject] = (read_json(self._scores, "")["rounds"]
                                    if self._scores.exists() else [])
        return rounds

    def _listen(self, child: subprocess.Popen[str], segmenter: str) -> None:
        states = list(self._desk.states().values())
        corrected = states.count("corrected") + states.count("accepted")
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                self._said |= json.loads(line)
            if point := self._said.pop("point", None):
                rounds = self._curve()
                rounds.append(point | {"photos": corrected if rounds else 0})
                write_json(self._scores, {"rounds": rounds})
        if child.wait() and not self._said["error"]:
            self._said["error"] = "training has stopped; what is finished is kept"
        try:
            if not child.returncode:
                self._desk.reopen(kinds.called("predictions", segmenter))
        except VplError as error:
            self._said["error"] = error.message
        self._child = None


def segmenter_of(path: Path, shown: str) -> str:
    """Name the segmenter that is trained again: that of the masks shown, else the newest; or ``."""
    kind, _, name = shown.partition("/")
    there = {file.stem: file.stat().st_mtime for file in kinds.results_of(path, "decoder")}
    own = name.removesuffix("-crf")
    return own if kind == "predictions" and own in there else max(there, key=there.__getitem__,
                                                                  default="")


def steps(desk: Desk, segmenter: str, split: str) -> list[str]:
    """Return the lines that make a segmenter's masks of a split, and score it."""
    predictions = kinds.place(desk.path, "predictions", segmenter, "")
    # Predictions of a training that was stopped amid them are not complete.
    manifests = {name: predictions / name / "artifact.json"
                 for name in (split, desk.scored["split"])}
    return [*(command_line("predict", {"split": name, "decoder": segmenter})
              for name, manifest in manifests.items()
              if not (manifest.exists() and read_json(manifest, "").get("complete"))),
            command_line("eval", {"what": kinds.called("predictions", segmenter), **desk.scored})]


def _keep(old: Path, rounds: Path) -> None:
    """Keep the masks that are about to change; links, as new files take the place of old ones."""
    to = rounds / str(1 + sum(1 for _ in rounds.glob("*")))
    for path in old.rglob("*.png"):
        kept = to / path.relative_to(old)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copy2(path, kept)


class _Said(console.Silence):
    """Progress as lines of JSON on stdout."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[console.Advance]:
        done = 0

        def advance(count: int = 1, text: str = "") -> None:
            nonlocal done
            done += count
            _say(title=title, done=done, total=total)

        advance(0)
        yield advance


def words_of(error: Exception) -> str:
    """Say in a line for the page what went wrong, as a shell would have it typed."""
    return to_shell(str(error).replace("\nhint: ", "; "))


def _say(**what: Any) -> None:
    # A page that has gone is no reason to stop.
    with contextlib.suppress(OSError):
        print(json.dumps(what), flush=True)


def main(path: Path, todo: Sequence[str]) -> int:
    """Run lines, and say how far they are; return the exit status."""
    with console.heard_by(_Said()):
        try:
            for line in todo:
                _say(step=line, title="", done=0, total=0)
                call, found, _ = run_line(shlex.split(line)[1:], path)
                if call.found.name == "eval" and isinstance(found, Mapping):
                    _say(point=({"score": 100 * found["miou"], "measure": "mIoU"}
                                if "miou" in found else
                                {"score": 100 * found["mean"]["f1"], "measure": "F1 against tags"}))
        except (VplError, OSError, RuntimeError, MemoryError) as problem:
            _say(error=words_of(problem))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
