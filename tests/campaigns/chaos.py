"""Kills and faults: every command is ended at random points and run again.

    python -m campaigns.chaos --kills 200 --out FILE

Each run is a fork of one process that has imported everything. A command is killed by SIGKILL at a
moment drawn evenly from its undisturbed duration; the same command again must end in the bytes that
the undisturbed one made. Commands that replace what is there are also killed at each change of a
file (`campaigns.counted`). Faults are a full disk, a folder that cannot be written, an input that
vanishes meanwhile, and a device that is not there: one line, exit code 1, and nothing damaged. Two
processes that begin the same are the last part.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

Words = tuple[object, ...]

_TRAIN: Words = ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
                 "--batch-size", 2, "--width", 16, "--iters", 24, "--checkpoint-every", 4)

COMMANDS: tuple[Words, ...] = (
    ("prepare", "folder", "photos", "--labels", "tags.csv", "--pretrained", "clip", "--masks",
     "masks", "--captions", "captions.csv"),
    ("text-prototypes", "--prompts", "single"),
    ("extract", "--split", "train", "--workers", 0, "--batch-size", 2, "--keep",
     "tokens,patches,attention,layers"),
    ("extract", "--split", "val", "--workers", 0, "--batch-size", 1),
    ("embed", "--method", "naclip"),
    ("tag", "--split", "val", "--batch-size", 1, "--workers", 0, "--crop", 16),
    ("cam", "--batch-size", 2),
    ("refine", "--batch-size", 2),
    ("crf", "--workers", 0),
    ("seed-prototypes", "--cams", "text-refined", "--max-pixels", 300),
    ("learn-prototypes", "--iters", 60),
    ("align", "--cams", "text", "--width", 8, "--iters", 12, "--refresh", 5, "--batch-size", 8,
     "--patches", 4),
    _TRAIN,
    ("predict", "--decoder", "text-refined", "--split", "val", "--workers", 0, "--batch-size", 1),
    ("export", "bundle", "--what", "text-refined"),
    ("export", "label-studio"),
    ("train-groups", "--side", 16, "--patch", 4, "--width", 12, "--heads", 2, "--depths", "1,1,1",
     "--groups", "4,2", "--hidden", 8, "--npr-hidden", 8, "--iters", 8, "--batch-size", 4,
     "--workers", 0),
    ("pack", "--split", "train"),
)
"""Commands in their order; each is disturbed in the workspace that those before it have made."""

INPUTS = {"extract": "photos", "cam": "work/features", "refine": "work/cams/text", "crf": "photos",
          "predict": "photos", "train-decoder": "work/masks", "train-groups": "photos"}
"""What vanishes while a command runs."""

_LEFT = ".part-"
"""Beginning of the names of files that are being written."""


@dataclass
class Figures:
    """What a campaign has counted.

    Args:
        counts: what was done to a command, and how often.
        damage: what was found that must not be.
        twice: files that were whole before the kill and were written again; not the head beside
            features, which belongs to no photo and is written with the first of them.
        kept: files that were whole before the kill and were not.
        left: bytes of unfinished files that remain after the second run.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    damage: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    kept: int = 0
    left: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, negative for a signal; what it said; how long it took."""

    code: int
    said: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.said.splitlines() if line.startswith("error:")]


def begin_run(words: Sequence[object], base: Path, said: Path,
              first: Callable[[], None] = lambda: None) -> int:
    """Fork, and run a command there, in a group of processes of its own; its number.

    `first` is called in the new process.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(base)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["vpltool", "-C", "work", *map(str, words)]
        from vpltool import cli

        first()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def end_run(child: int, said: Path, began: float, kill_after: float | None = None,
            meanwhile: Callable[[], None] | None = None) -> Outcome:
    """Wait for a run; kill it, or do something else meanwhile, after so many seconds."""
    due = None if kill_after is None else began + kill_after
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if ended:
            return Outcome(os.waitstatus_to_exitcode(status), said.read_text(), now - began)
        if due is not None and now >= due:
            due = None
            if meanwhile is not None:
                meanwhile()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
        time.sleep(0.0005 if due is not None else 0.005)


def run(words: Sequence[object], base: Path, kill_after: float | None = None,
        meanwhile: Callable[[], None] | None = None) -> Outcome:
    """Run a command in a base folder, whole or until it is killed."""
    said = base.with_name(f"{base.name}-said")
    began = time.monotonic()
    return end_run(begin_run(words, base, said), said, began, kill_after, meanwhile)


def contents(base: Path) -> dict[str, str]:
    """Path of each file of a folder to a hash of its bytes; files being written are left out."""
    return {path.relative_to(base).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(base.rglob("*")) if path.is_file() and _LEFT not in str(path)}


def stamps(base: Path) -> dict[str, tuple[int, int]]:
    """Path of each file to what changes when it is written again."""
    return {path.relative_to(base).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in base.rglob("*") if path.is_file()}


def restore(source: Path, base: Path) -> None:
    """Make a folder what another one is."""
    for entry in base.iterdir() if base.is_dir() else ():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.copytree(source, base, symlinks=True, dirs_exist_ok=True)


@dataclass(frozen=True)
class Case:
    """A command with the state before it, and what it makes undisturbed, in so many seconds."""

    words: Words
    before: Path
    after: dict[str, str]
    seconds: float
    grown: int

    @property
    def name(self) -> str:
        """The command, as the figures name it."""
        return str(self.words[0])


def make_cases(room: Path, commands: Sequence[Words]) -> list[Case]:
    """Run all commands undisturbed; keep the state before each."""
    from conftest import draw_scenes, save_clip, write_scenes

    base = room / "base"
    base.mkdir()
    save_clip(base / "clip")
    write_scenes(base, draw_scenes(12))
    (base / "captions.csv").write_text("id,caption\n" + "".join(
        f"scene{number},a drawing of shape {number % 3}\n" for number in range(12)))
    cases = []
    last = max(COMMANDS.index(words) for words in commands)
    for number, words in enumerate(COMMANDS[: last + 1]):
        before = room / f"before-{number}"
        shutil.copytree(base, before, symlinks=True)
        outcome = run(words, base)
        assert outcome.code == 0, f"{words}: {outcome.said}"
        if words in commands:
            # The second time nothing is read from a disk for the first time.
            trial = room / "trial"
            restore(before, trial)
            again = run(words, trial)
            assert contents(trial) == contents(base), f"{words} twice is not the same"
            cases.append(Case(words, before, contents(base), min(outcome.seconds, again.seconds),
                              sum(path.stat().st_size for path in base.rglob("*")
                                  if path.is_file()) - sum(
                                  path.stat().st_size for path in before.rglob("*")
                                  if path.is_file())))
    return cases


def _differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    return sorted(name for name in found.keys() | wanted.keys()
                  if found.get(name) != wanted.get(name))


def _half(base: Path, case: Case) -> list[str]:
    """Files that pass for whole and are not what the undisturbed command has, or had before."""
    old = contents(case.before)
    return [name for name, value in contents(base).items()
            if value not in (case.after.get(name), old.get(name))
            and not name.endswith((".checkpoint.safetensors", "artifact.json", ".lock"))]


def kill_once(case: Case, base: Path, chance: Random, figures: Figures) -> bool:
    """Kill a command once, look at what it left, and run it again; whether it was killed."""
    from vpltool.engine.features import HEAD

    restore(case.before, base)
    killed = run(case.words, base, chance.uniform(0, case.seconds))
    if killed.code != -signal.SIGKILL:
        return False
    figures.counts[case.name, "kills"] += 1
    where = f"{case.name}, kill {figures.counts[case.name, 'kills']}"
    if half := _half(base, case):
        figures.damage.append(f"{where}: half files pass for whole: {half[:3]}")
    old = contents(case.before)
    whole = [name for name, value in contents(base).items()
             if case.after.get(name) == value and name not in old and not name.endswith(HEAD)]
    earlier = stamps(base)
    _run_again(case, base, figures, where)
    later = stamps(base)
    again = [name for name in whole if earlier[name] != later.get(name)]
    figures.twice += [f"{where}: {name}" for name in again]
    figures.kept += len(whole) - len(again)
    figures.left += sum(path.stat().st_size for path in base.rglob(f"{_LEFT}*") if path.is_file())
    return True


def _run_again(case: Case, base: Path, figures: Figures, where: str) -> None:
    outcome = run(case.words, base)
    if outcome.code:
        figures.damage.append(f"{where}: the same command again ends with {outcome.code}: "
                              f"{outcome.said[-500:]}")
    elif differ := _differences(contents(base), case.after):
        figures.damage.append(f"{where}: the outcome differs: {differ[:5]}")


def check_told(case: Case, outcome: Outcome, figures: Figures, where: str) -> None:
    """Check that a fault was told by one line, with exit code 1."""
    if outcome.code != 1 or len(outcome.errors) != 1 or "Traceback" in outcome.said:
        figures.damage.append(f"{where}: exit code {outcome.code}, said {outcome.said[-600:]}")


_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Callable[[bool], None]]:
    """Mount a disk of so many bytes; what it yields makes it read-only, or writable again.

    Raises:
        PermissionError: this process may not mount.
    """
    place.mkdir(exist_ok=True)

    def mount(flags: int, data: bytes) -> None:
        if _libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, data):
            raise PermissionError(ctypes.get_errno(), "no disk can be mounted", str(place))

    mount(0, f"size={size}".encode())
    try:
        # 32: MS_REMOUNT, 1: MS_RDONLY
        yield lambda readonly: mount(32 | int(readonly), f"size={size}".encode())
    finally:
        _libc.umount2(os.fsencode(place), 2)


def full_disk(case: Case, base: Path, room: Path, chance: Random, figures: Figures) -> None:
    """Run a command where the disk is full before it is done; then free the disk."""
    with small_disk(room / "disk", 1 << 26):
        disk = room / "disk" / "base"
        restore(case.before, disk)
        free = os.statvfs(disk)
        # Blocks: a file of one byte takes a page.
        wanted = int(case.grown * chance.uniform(0.1, 0.8))
        filler = room / "disk" / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            left = free.f_bavail * free.f_frsize - wanted
            while left > 0:
                left -= file.write(b"\0" * min(left, 1 << 20))
        said = room / "said"
        outcome = end_run(begin_run(case.words, disk, said), said, time.monotonic())
        where = f"{case.name}, full disk"
        figures.counts[case.name, "full disk"] += 1
        check_told(case, outcome, figures, where)
        if half := _half(disk, case):
            figures.damage.append(f"{where}: half files pass for whole: {half[:3]}")
        filler.unlink()
        _run_again(case, disk, figures, where)


def read_only(case: Case, base: Path, room: Path, chance: Random, figures: Figures) -> None:
    """Run a command in a workspace that cannot be written."""
    with small_disk(room / "disk", 1 << 26) as remount:
        disk = room / "disk" / "base"
        restore(case.before, disk)
        before, said = contents(disk), room / "said"
        remount(True)
        outcome = end_run(begin_run(case.words, disk, said), said, time.monotonic())
        figures.counts[case.name, "read-only"] += 1
        check_told(case, outcome, figures, f"{case.name}, read-only")
        remount(False)
        if contents(disk) != before:
            figures.damage.append(f"{case.name}, read-only: something has changed")
        _run_again(case, disk, figures, f"{case.name}, read-only")


def vanish(case: Case, base: Path, room: Path, chance: Random, figures: Figures) -> None:
    """Take a command's input away while it runs, and put it back."""
    if case.name not in INPUTS:
        return
    restore(case.before, base)
    source, away = base / INPUTS[case.name], room / "away"
    outcome = run(case.words, base, chance.uniform(0, case.seconds), lambda: source.rename(away))
    if not away.exists():
        return
    figures.counts[case.name, "vanished input"] += 1
    where = f"{case.name}, vanished {INPUTS[case.name]}"
    if outcome.code:
        check_told(case, outcome, figures, where)
    if source.exists():
        figures.damage.append(f"{where}: something was written in its place")
        shutil.rmtree(source)
    away.rename(source)
    _run_again(case, base, figures, where)


def no_device(case: Case, base: Path, room: Path, chance: Random, figures: Figures) -> None:
    """Ask for a device that is not there."""
    if case.name in ("prepare", "export", "embed", "tag", "align", "pack"):
        return
    restore(case.before, base)
    outcome = run((*case.words, "--device", "cuda:9"), base)
    figures.counts[case.name, "no device"] += 1
    check_told(case, outcome, figures, f"{case.name}, no device")
    if differ := _differences(contents(base), contents(case.before)):
        figures.damage.append(f"{case.name}, no device: {differ[:3]} have changed")


def two_at_once(case: Case, base: Path, room: Path, chance: Random, figures: Figures) -> None:
    """Begin the same command a second time while the first runs; then run it once more."""
    restore(case.before, base)
    said = [room / "first", room / "second"]
    began = time.monotonic()
    first = begin_run(case.words, base, said[0])
    time.sleep(chance.uniform(0, case.seconds / 2))
    second = begin_run(case.words, base, said[1])
    outcomes = [end_run(child, text, began) for child, text in zip((first, second), said,
                                                                   strict=True)]
    figures.counts[case.name, "two at once"] += 1
    refused = [outcome for outcome in outcomes if outcome.code]
    for outcome in refused:
        figures.counts[case.name, "second told"] += 1
        check_told(case, outcome, figures, f"{case.name}, two at once")
        if "is already running" not in outcome.said:
            figures.damage.append(f"{case.name}, two at once: {outcome.said[-300:]}")
    if len(refused) == 2:
        figures.damage.append(f"{case.name}, two at once: neither was done")
    if differ := _differences(contents(base), case.after):
        figures.damage.append(f"{case.name}, two at once: the outcome differs: {differ[:5]}")


FAULTS = {"full disk": full_disk, "read-only": read_only, "vanished input": vanish,
          "no device": no_device, "two at once": two_at_once}


def campaign(room: Path, kills: int, faults: int, seed: int,
             commands: Sequence[Words] = COMMANDS) -> tuple[Figures, list[str]]:
    """Kill and disturb all commands.

    Args:
        room: an empty folder for it.
        kills: number of kills in all.
        faults: number of times that each fault meets each command.
        seed: of the moments.
        commands: those that are disturbed.

    Returns:
        the figures; and what was skipped, by name.
    """
    figures, chance, skipped = Figures(), Random(seed), list[str]()
    cases = make_cases(room, commands)
    base = room / "trial"
    for fault, disturb in FAULTS.items():
        for case in cases * faults:
            try:
                disturb(case, base, room, chance, figures)
            except PermissionError as error:
                skipped.append(f"{fault}: {error.strerror}")
                break
            say(f"{case.name}, {fault}", figures)
    done = attempt = 0
    while done < kills and attempt < 5 * kills:
        done += kill_once(cases[attempt % len(cases)], base, chance, figures)
        attempt += 1
        say(f"{done} of {kills} kills", figures)
    return figures, skipped


def say(done: str, figures: Figures) -> None:
    print(f"{done}; damage {len(figures.damage)}", file=sys.stderr, flush=True)


def as_markdown(figures: Figures, skipped: Sequence[str]) -> str:
    """The figures as a table."""
    columns = ["kills", *FAULTS, "second told"]
    lines = ["| command | " + " | ".join(columns) + " |", "|" + " --- |" * (len(columns) + 1)]
    for name in dict.fromkeys(str(words[0]) for words in COMMANDS):
        lines.append(f"| {name} | " + " | ".join(
            str(figures.counts[name, column]) for column in columns) + " |")
    total = [sum(count for (_, own), count in figures.counts.items() if own == column)
             for column in columns]
    lines.append("| **all** | " + " | ".join(map(str, total)) + " |")
    lines += ["", f"Damage: {len(figures.damage)}. Of {figures.kept + len(figures.twice)} files "
              f"that were whole when their command was killed, {len(figures.twice)} were written "
              f"again. Unfinished files left behind: {figures.left} bytes.",
              *(f"Written again: {line}" for line in figures.twice),
              *(f"Skipped: {line}" for line in skipped)]
    return "\n".join(lines) + "\n"


def preload() -> None:
    """Import all that commands import, once."""
    import torch

    from vpltool.clip.load import import_open_clip
    from vpltool.methods import KINDS, find_methods
    from vpltool.stages import find_stages

    torch.set_num_threads(1)
    import_open_clip()
    for found in find_stages().values():
        assert found.stage
    for kind in KINDS:
        for method in find_methods(kind).values():
            with contextlib.suppress(Exception):
                method.load()


def main() -> None:
    """Run the campaign; exit code 1 if anything was damaged."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=1, help="times of each fault")
    parser.add_argument("--pairs", type=int, default=9, help="pairs with different settings")
    parser.add_argument("--seconds", type=float, default=0,
                        help="for the kills by count, shared by the commands; 0: until all are "
                             "done")
    parser.add_argument("--only", default="",
                        help="kills by count: beginnings of names of commands, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file that the table of figures is written to")
    options = parser.parse_args()
    preload()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as room:
        from campaigns import counted

        figures, skipped = (
            campaign(Path(room), options.kills, options.faults, options.seed)
            if options.kills or options.faults else (Figures(), []))

        only = tuple(options.only.split(","))
        reached = counted.campaign(
            Path(room), figures, options.pairs, options.seconds, seed=options.seed,
            cases=tuple(case for case in counted.CASES if case.name.startswith(only)))
    table = f"{as_markdown(figures, skipped)}\n{counted.as_markdown(figures, reached)}"
    print(table)
    if options.out:
        options.out.write_text(table)
    for line in figures.damage:
        print(line)
    sys.exit(bool(figures.damage))


if __name__ == "__main__":
    main()
