"""Training again with what is corrected: a child process, and the curve of what it brought.

The child runs the same stages as the shell does: `update`, `predict`, `eval`. Run as a module, this
file is the child; it says on stdout, in lines of JSON, how far it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import PhotosFailed, VplError
from vpltool.formats import JsonObject, open_workspace, read_json, write_json
from vpltool.review.work import OWN
from vpltool.run import find_stage, run_stage
from vpltool.shell import command_line, program, to_shell

if TYPE_CHECKING:
    from vpltool.review.desk import Desk

_SCORES = "scores.json"


class Training:
    """The child process of a desk, as the page sees it."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._child = desk, None
        self._said: JsonObject = {}
        self._lock = threading.Lock()

    def state(self) -> JsonObject:
        """What the child does, or did; the lines for a shell; and the curve."""
        path = self._desk.path / OWN / _SCORES
        segmenter = segmenter_of(self._desk.path, self._desk.shown.name)
        return {"runs": self._child is not None, "segmenter": segmenter,
                "lines": [command_line(name, values, program(self._desk.path)) for name, values
                          in steps(self._desk.path, segmenter, self._desk.split)],
                "curve": read_json(path, "")["rounds"] if path.exists() else [], **self._said}

    def begin(self) -> JsonObject:
        """Start the child, unless it runs."""
        with self._lock:
            if self._child is None:
                desk = self._desk
                segmenter = segmenter_of(desk.path, desk.shown.name)
                if not segmenter:
                    raise VplError("there is no segmenter to train again",
                                   "`train_decoder()` trains the first one; then reload the page")
                self._said = {"step": "starting", "done": 0, "total": 0, "error": ""}
                states = list(desk.states().values())
                self._child = subprocess.Popen(  # type: ignore[assignment]
                    [sys.executable, "-m", "vpltool.review.training", str(desk.path.resolve()),
                     segmenter, desk.split, desk.shown.name, str(desk.journal.count()),
                     str(states.count("corrected") + states.count("accepted"))],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                threading.Thread(target=self._listen, args=(self._child, segmenter),
                                 daemon=True).start()
        return self.state()

    def stop(self) -> JsonObject:
        """End the child; what it has finished is kept."""
        if (child := self._child) is not None:
            child.terminate()
        return self.state()

    def _listen(self, child: subprocess.Popen[str], segmenter: str) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            with contextlib.suppress(ValueError):
                self._said |= json.loads(line)
        if child.wait() and not self._said["error"]:
            self._said["error"] = "training has stopped; what is finished is kept"
        try:
            if not child.returncode:
                self._desk.reopen(f"predictions/{segmenter}")
        except VplError as error:
            self._said["error"] = error.message
        self._child = None


def segmenter_of(path: Path, shown: str) -> str:
    """Name the segmenter that is trained again: that of the masks shown, else the newest; or ``."""
    kind, _, name = shown.partition("/")
    there = {file.stem: file.stat().st_mtime for file in (path / "decoder").glob("*.safetensors")}
    own = name.removesuffix("-crf")
    return own if kind == "predictions" and own in there else max(there, key=there.__getitem__,
                                                                  default="")


def steps(path: Path, segmenter: str, split: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield stage and settings of each step: the same lines train again in a shell."""
    yield "update", {}
    scored = _scored(path, split)
    for name in dict.fromkeys((split, scored[0])):
        if not (path / "predictions" / segmenter / name / "artifact.json").exists():
            yield "predict", {"split": name, "decoder": segmenter}
    yield "eval", {"what": f"predictions/{segmenter}", "split": scored[0], "against": scored[1]}


def _scored(path: Path, split: str) -> tuple[str, str]:
    """The split that the curve is of, and what it is scored against."""
    photos = open_workspace(path).photos()
    name = "val" if any("val" in photo.splits for photo in photos) else split
    against = "masks" if any(photo.mask for photo in photos if name in photo.splits) else "tags"
    return name, against


class _Said(console.Silence):
    """Progress as lines of JSON on stdout."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[console.Advance]:
        done = 0

        def advance(count: int = 1, text: str = "") -> None:
            nonlocal done
            done += count
            _say(title=title, done=done, total=total)

        _say(title=title, done=0, total=total)
        yield advance


def _say(**what: object) -> None:
    # A page that has gone is no reason to stop.
    with contextlib.suppress(OSError):
        print(json.dumps(what), flush=True)


def _train(path: Path, segmenter: str, split: str, shown: str, edits: int, photos: int) -> None:
    scores = path / OWN / _SCORES
    rounds = read_json(scores, "")["rounds"] if scores.exists() else []
    todo = list(steps(path, segmenter, split))
    if not rounds:
        # Where the curve begins: the segmenter before any correction.
        for name, values in todo[1:]:
            if name == "eval" or values["split"] != split or _scored(path, split)[0] == split:
                found = _run(path, name, values)
        rounds.append(_point(found, 0, 0))
        write_json(scores, {"rounds": rounds})
    _keep(path / shown / split, path / OWN / "rounds" / str(len(rounds)))
    for name, values in list(steps(path, segmenter, split)):
        found = _run(path, name, values)
    rounds.append(_point(found, edits, photos))
    write_json(scores, {"rounds": rounds})


def _point(report: Mapping[str, Any], edits: int, photos: int) -> JsonObject:
    """A point of the curve: edits and photos that are corrected, and the score in percent."""
    masks = "miou" in report
    score = report["miou"] if masks else report["mean"]["f1"]
    return {"edits": edits, "photos": photos, "score": 100 * score,
            "measure": "mIoU" if masks else "F1 against tags"}


def _run(path: Path, name: str, values: Mapping[str, object]) -> Any:
    _say(step=command_line(name, values, ["vpltool"]), title="", done=0, total=0)
    with contextlib.suppress(PhotosFailed):
        return run_stage(find_stage(name), path, values)


def _keep(old: Path, to: Path) -> None:
    """Keep the masks that are about to change; links, as new files take the place of old ones."""
    shutil.rmtree(to, ignore_errors=True)
    for path in old.rglob("*.png"):
        kept = to / path.relative_to(old)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copy2(path, kept)


if __name__ == "__main__":
    with console.heard_by(_Said()):
        try:
            _train(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]),
                   int(sys.argv[6]))
        except (VplError, OSError, RuntimeError, MemoryError) as problem:
            said = problem.message if isinstance(problem, VplError) else str(problem)
            hint = problem.hint if isinstance(problem, VplError) else ""
            _say(error=to_shell(f"{said}; {hint}" if hint else said))
            sys.exit(1)
