"""Kills by count: a command is killed at its first change of a file, at its second, and so on.

Changes are what deletes, renames, or opens for writing. After each kill `status` must not say that
all is up to date, no corrected mask may be lost, and the same command again must end in the bytes
of an undisturbed run. Also pairs of commands with different settings, which must not mix.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from campaigns import chaos
from campaigns.chaos import Figures, Outcome, Words

SETUP: tuple[Words, ...] = (
    ("prepare", "folder", "photos", "--labels", "tags.csv", "--pretrained", "clip", "--masks",
     "masks"),
    ("text-prototypes", "--prompts", "single"),
    ("extract", "--split", "train", "--workers", 0, "--batch-size", 4),
    ("cam", "--batch-size", 4), ("refine", "--batch-size", 4), ("crf", "--workers", 0),
    ("export", "yolo-semantic", "--what", "masks/text-refined", "--split", "train"),
)
"""Commands that fill the workspace that the cases begin with."""

_AGAIN: Words = ("prepare", "folder", "photos", "--labels", "tags.csv")

_CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link",
            "os.symlink"}

_RECIPE = """# Masks of the photos.
vpltool text-prototypes --prompts single
vpltool extract --split train --workers 0 --batch-size 4
vpltool cam --batch-size 4
vpltool refine --batch-size 4
vpltool crf --workers 0
"""


@dataclass(frozen=True)
class Counted:
    """A command that replaces what is there.

    Args:
        name: for the figures.
        words: the command.
        change: what is done to the workspace before.
        kept: files that it must leave as they are.
    """

    name: str
    words: Words
    change: Callable[[Path], None] = lambda _base: None
    kept: tuple[str, ...] = ()


def correct(base: Path) -> None:
    """Save a mask as another program does: it has no header then, and people's work in it."""
    from PIL import Image

    path = base / CORRECTED
    with Image.open(path) as image:
        image.load()
        image.info.clear()
        image.putpixel((3, 3), 255)
        image.save(path)


CORRECTED = "work/masks/text-refined/train/scene2.png"


def retag(base: Path) -> None:
    """Give two photos another tag."""
    tags = (base / "tags.csv").read_text().replace("scene1,box", "scene1,disc").replace(
        "scene4,box", "scene4,bar")
    (base / "tags.csv").write_text(tags)
    (base / "small.recipe").write_text(_RECIPE)
    assert chaos.run(_AGAIN, base).code == 0
    correct(base)


_CRF: Words = ("crf", "--workers", 0, "--alpha", 3)

CASES = (
    Counted("crf --update", (*_CRF, "--update"), correct, (CORRECTED,)),
    Counted("crf --overwrite", (*_CRF, "--overwrite")),
    Counted("cam --overwrite", ("cam", "--batch-size", 4, "--overwrite")),
    Counted("crf --shard", (*_CRF, "--shard", "0/1", "--overwrite")),
    Counted("update", ("update",), retag, (CORRECTED,)),
    Counted("run RECIPE", ("run", "small.recipe"), retag, (CORRECTED,)),
    Counted("export again", SETUP[-1]),
)


def count_changes(base: Path, kill_at: int) -> None:
    """Kill this process at a change of a file below a folder; for a process that was forked."""
    inside, done = f"{base}{os.sep}", 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal done
        writes = event in _CHANGES or (event == "open" and isinstance(args[2], int)
                                       and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not writes or not isinstance(args[0], (str, bytes)):
            return
        path = os.fsdecode(args[0])
        # Of rmtree: a name in an open folder.
        if not Path(path).is_absolute() and event in ("os.remove", "os.rmdir") and args[1] != -1:
            path = inside + path
        if str(Path(path).absolute()).startswith(inside):
            done += 1
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_killed(words: Words, base: Path, kill_at: int) -> Outcome:
    """Run a command until its n-th change of a file."""
    said = base.with_name(f"{base.name}-said")
    began = time.monotonic()
    child = chaos.begin_run(words, base, said, lambda: count_changes(base, kill_at))
    return chaos.end_run(child, said, began)


def is_up_to_date(base: Path) -> bool:
    """Tell whether `status` says so of all, and `vpltool` alone names no unfinished recipe."""
    from vpltool.formats import open_workspace
    from vpltool.formats.started import read_started
    from vpltool.state import read_state

    state = read_state(open_workspace(base / "work"), passes_over=True)
    started = read_started(base / "work")
    return ((started is None or started.done) and not state.damaged
            and not any(map(state.stale, state.in_order)))


def prepare(room: Path) -> Path:
    """Make the workspace that the cases begin with."""
    from conftest import draw_scenes, save_clip, write_scenes

    base = room / "counted"
    base.mkdir()
    save_clip(base / "clip")
    write_scenes(base, draw_scenes(12))
    for words in SETUP:
        outcome = chaos.run(words, base)
        assert outcome.code == 0, f"{words}: {outcome.said}"
    warm(base, room / "counted-warm")
    return base


def warm(start: Path, base: Path) -> None:
    """Run all cases once in this process, so that forks need not import and compile again."""
    from conftest import run_in_process

    before = Path.cwd()
    for case in CASES:
        chaos.restore(start, base)
        case.change(base)
        os.chdir(base)
        try:
            result = run_in_process(*case.words, work=Path("work"))
        finally:
            os.chdir(before)
        assert result.code == 0, f"{case.words}: {result.err}"
    shutil.rmtree(base)


def kill_everywhere(case: Counted, start: Path, room: Path, figures: Figures,
                    is_over: Callable[[], bool] = lambda: False) -> bool:
    """Kill a command at each of its changes; whether all of them were reached."""
    base, before = room / "counted-trial", room / "counted-before"
    shutil.rmtree(before, ignore_errors=True)
    chaos.restore(start, before)
    case.change(before)
    chaos.restore(before, base)
    outcome = chaos.run(case.words, base)
    assert outcome.code == 0, f"{case.words}: {outcome.said}"
    old, new = chaos.contents(before), chaos.contents(base)
    assert all(old[name] == new[name] for name in case.kept)
    number = 0
    while not is_over():
        number += 1
        chaos.restore(before, base)
        killed = run_killed(case.words, base, number)
        if killed.code != -signal.SIGKILL:
            return killed.code == 0
        figures.counts[case.name, "kills by count"] += 1
        if number % 25 == 0:
            chaos.say(f"{case.name}: {number} kills", figures)
        where, now = f"{case.name}, killed at change {number}", chaos.contents(base)
        figures.damage += [f"{where}: {name} is lost" for name in case.kept
                           if now.get(name) != old[name]]
        if now not in (old, new) and is_up_to_date(base):
            figures.damage.append(f"{where}: status says that all is up to date")
        outcome = chaos.run(case.words, base)
        if outcome.code:
            figures.damage.append(f"{where}: the same command again ends with {outcome.code}: "
                                  f"{outcome.said[-500:]}")
        elif (found := chaos.contents(base)) != new:
            differ = sorted(name for name in found.keys() | new.keys()
                            if found.get(name) != new.get(name))
            figures.damage.append(f"{where}: the outcome differs: {differ[:5]}")
    return False


PAIRS: tuple[tuple[Words, Words], ...] = (
    ((*_CRF, "--overwrite"), ("crf", "--workers", 0, "--alpha", 8, "--overwrite")),
    (("cam", "--batch-size", 1, "--overwrite"), ("cam", "--batch-size", 1, "--overwrite",
                                                 "--store", "fp32")),
    (("text-prototypes", "--prompts", "single", "--overwrite"),
     ("text-prototypes", "--overwrite")),
)
"""Commands with different settings that write the same folder or file."""


def pair_once(pair: tuple[Words, Words], start: Path, room: Path, chance: Random,
              figures: Figures) -> None:
    """Begin both of a pair, one a little later; the outcome must be that of one of them."""
    base, wanted = room / "counted-trial", []
    for words in pair:
        chaos.restore(start, base)
        began = time.monotonic()
        assert chaos.run(words, base).code == 0
        seconds = time.monotonic() - began
        wanted.append(chaos.contents(base))
    chaos.restore(start, base)
    said, children = [room / "first", room / "second"], []
    began = time.monotonic()
    for words, text in zip(pair, said, strict=True):
        children.append(chaos.begin_run(words, base, text))
        time.sleep(chance.uniform(0, seconds / 2))
    outcomes = [chaos.end_run(child, text, began)
                for child, text in zip(children, said, strict=True)]
    name = str(pair[0][0])
    figures.counts[name, "pairs"] += 1
    for outcome in outcomes:
        if outcome.code:
            figures.counts[name, "pair told"] += 1
            chaos.check_told(_named(name), outcome, figures, f"{name}, pair")
    if all(outcome.code for outcome in outcomes):
        figures.damage.append(f"{name}, pair: neither was done")
    if chaos.contents(base) not in wanted:
        figures.damage.append(f"{name}, pair: a mixture")


def _named(name: str) -> chaos.Case:
    return chaos.Case((name,), Path(), {}, 0, 0)


def as_markdown(figures: Figures, reached: dict[str, bool]) -> str:
    """The figures as a table."""
    lines = ["| command | kills by count | all of them |", "| --- | --- | --- |"]
    lines += [f"| {name} | {figures.counts[name, 'kills by count']} | "
              f"{'yes' if reached[name] else 'no'} |" for name in reached]
    total = sum(count for (_, what), count in figures.counts.items() if what == "kills by count")
    lines += [f"| **all** | {total} | {'yes' if all(reached.values()) else 'no'} |", "",
              f"Pairs with different settings: {_sum(figures, 'pairs')}; in "
              f"{_sum(figures, 'pair told')} of them one was told.", ""]
    return "\n".join(lines)


def _sum(figures: Figures, what: str) -> int:
    return sum(count for (_, own), count in figures.counts.items() if own == what)


@contextmanager
def until(seconds: float) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether so many seconds have passed; 0: they never have."""
    end = time.monotonic() + seconds
    yield lambda: bool(seconds) and time.monotonic() > end


def campaign(room: Path, figures: Figures, pairs: int, seconds: float = 0,
             cases: tuple[Counted, ...] = CASES, seed: int = 0) -> dict[str, bool]:
    """Kill all cases at each of their changes, and run pairs; which cases were reached to the end.

    The seconds are shared by the cases.
    """
    chance, start, reached = Random(seed), prepare(room), {}
    for number in range(pairs):
        pair_once(PAIRS[number % len(PAIRS)], start, room, chance, figures)
        chaos.say(f"pair {number + 1} of {pairs}", figures)
    for case in cases:
        with until(seconds / len(cases)) as is_over:
            reached[case.name] = kill_everywhere(case, start, room, figures, is_over)
            chaos.say(f"{case.name}: {figures.counts[case.name, 'kills by count']} kills", figures)
    return reached
