"""Hostile files: a million executions of every reader and stage, by atheris and by hypothesis.

    python -m campaigns.fuzz --executions 1000000 --out FILE

A campaign may be made in parts, each with a `--seed` of its own and the same `--finds`; the table
adds them up. A part that was interrupted goes on with the readers that it has not done.

Each reader runs in a process of its own, which may take one GiB more than it has and five seconds
of processor time for a file. What counts as a find: an exception that is not what a user is told as
a line, a hang, memory beyond the limit, a crash, a file written outside of the world, a process
started, a class that a pickle names.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 5
MEMORY = 1 << 30
LARGEST = 1 << 20
RARE = 200
"""One in so many executions by atheris is of a file of up to `LARGEST` bytes, which takes a hundred
times as long to read; the others are kept near the size of a valid one."""
_WAIT = 300
"""Seconds without an execution after which a reader's process is ended."""

_RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork",
              "pickle.find_class", "socket.connect")
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),), "os.symlink": ((1, 2),), "os.link": ((1, 3),), "os.chmod": ((0, 2),),
    "os.truncate": ((0, None),), "shutil.rmtree": ((0, 1),), "shutil.copyfile": ((1, None),),
    "shutil.move": ((0, None), (1, None))}
"""Event to which of its arguments are paths that change, and which is the open folder of each."""


class Hang(BaseException):
    """Five seconds of processor time are over."""


class Escape(BaseException):
    """Code was about to run, or a file outside of the world to be changed."""


@contextlib.contextmanager
def limited(memory: int = MEMORY) -> Iterator[None]:
    """Limit this process's address space to what it has and so much more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


_watched: list[Path] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "pickle.find_class" and _of_numba():
        return
    if event in _RUNS_CODE:
        raise Escape(f"{event} {args[:1]}")
    writes = event == "open" and isinstance(args[2], int) and args[2] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    for at, folder in ((0, None),) if writes else _CHANGES.get(event, ()):
        if isinstance(args[at], (str, bytes, os.PathLike)):
            opened = args[folder] if folder is not None and len(args) > folder else None
            beside = (Path(f"/proc/self/fd/{opened}").readlink()
                      if isinstance(opened, int) and opened >= 0 else Path())
            path = os.path.realpath(beside / os.fsdecode(args[at]))
            # Compiled code of Python and Numba.
            inside = path.startswith((str(_watched[-1]), "/dev/null")) or "__pycache__" in path
            if not inside:
                raise Escape(f"{event} {path}")


def _of_numba() -> bool:
    """Whether Numba reads compiled code: its own cache, or what it has just pickled itself."""
    return any(frame.filename.endswith(("/numba/core/caching.py", "/numba/core/serialize.py"))
               for frame in traceback.extract_stack(limit=30))


_install = functools.cache(lambda: sys.addaudithook(_watch))


@contextlib.contextmanager
def watched(base: Path) -> Iterator[None]:
    """Have an `Escape` raised where code would run, or a file outside of `base` be changed."""
    _install()
    _watched.append(base.resolve())
    try:
        yield
    finally:
        _watched.pop()


def find_in(read: Callable[[Path], object], base: Path) -> tuple[str, str]:
    """Read a file of a world once.

    Returns:
        what was found and where it happened, empty if all is well; and the traceback.
    """
    from vpltool.errors import explain, is_out_of_memory
    from vpltool.shell import to_shell

    def late(*_: object) -> None:
        raise Hang("five seconds")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        try:
            with watched(base):
                read(base)
        except (Hang, Escape):
            raise
        except Exception as error:
            told = explain(error)
            if told is None or _lacked_memory(error) or is_out_of_memory(error):
                raise
            assert to_shell(told.message) + to_shell(told.hint)
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return f"{type(error).__name__} in {_place_of(error)}", traceback.format_exc()[-4000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "", ""


def _lacked_memory(error: BaseException | None) -> bool:
    """Whether an exception was caused by a lack of memory, whatever it says."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, MemoryError):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _place_of(error: BaseException) -> str:
    """The innermost function of the product that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/vpltool/" in frame.filename]
    last = (own or list(frames))[-1]
    return f"{Path(last.filename).stem}.{last.name}"


class Counts:
    """Executions and the time of the last one, shared with the parent process."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 24)

    def add(self) -> None:
        """Count an execution."""
        total = self.total + 1
        self.memory[:16] = struct.pack("<qd", total, time.monotonic())

    @property
    def total(self) -> int:
        """Executions so far."""
        return int(struct.unpack("<q", self.memory[:8])[0])

    @property
    def last(self) -> float:
        """When the last one began."""
        return float(struct.unpack("<d", self.memory[8:16])[0])


class Trial:
    """One reader in one world: executes contents, counts them, and notes what is found.

    Args:
        reader: the reader.
        seeds: valid contents of its file.
        base: a world of its own.
        finds: folder that finds are written to.
        counts: shared with the parent.
    """

    def __init__(self, reader: Any, seeds: list[bytes], base: Path, finds: Path, counts: Counts
                 ) -> None:
        from campaigns.mutations import FORMS

        self.reader, self.base, self.finds, self.counts = reader, base, finds, counts
        self.path = base / reader.place
        self.seeds = seeds
        self.mutate = FORMS[reader.form]
        self.known: set[str] = set()

    def execute(self, content: bytes) -> str:
        """Read a content; what was found, or empty."""
        if len(content) > LARGEST:
            return ""
        self.counts.add()
        self.path.write_bytes(content)
        found, trace = find_in(self.reader.read, self.base)
        if found and found not in self.known:
            self.known.add(found)
            note_find(self.finds, self.reader.name, found, trace, content)
        return found


def note_find(finds: Path, reader: str, found: str, trace: str, content: bytes) -> None:
    """Write a find down: one line a find, and the file that leads to it."""
    name = f"{reader.replace(' ', '-')}-{hashlib.sha256(content).hexdigest()[:12]}"
    (finds / name).write_bytes(content)
    note(finds, "finds", {"reader": reader, "found": found, "file": name, "trace": trace})


def by_atheris(trial: Trial, runs: int, seed: int) -> None:
    """Run libFuzzer over a reader; it does not return, but ends the process."""
    import atheris

    corpus = trial.base.with_name(trial.base.name + "-corpus")
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir()
    for number, content in enumerate(trial.seeds):
        (corpus / str(number)).write_bytes(content)

    room = min(LARGEST, 2 * max(4096, *map(len, trial.seeds)))
    large = Random(seed)
    whole = b""
    """What the last mutation made, before it was cut to the room."""

    def mutate(content: bytes, most: int, number: int) -> bytes:
        nonlocal whole
        chance = Random(number)
        if chance.random() < 0.25:
            return bytes(atheris.Mutate(content, most))
        made = trial.mutate(content or trial.seeds[0], chance)
        whole = max(whole, made, key=len)
        return made[:most]

    def execute(content: bytes) -> None:
        nonlocal whole
        if whole and large.random() < 1 / RARE:
            # Not through libFuzzer, which would keep it, and read it again and again.
            trial.execute(whole)
            whole = b""
        trial.execute(content)

    atheris.Setup(
        ["fuzz", f"-runs={runs}", f"-seed={seed + 1}", f"-max_len={room}", "-verbosity=0",
         "-rss_limit_mb=0", "-timeout=600", "-len_control=0", str(corpus)],
        execute, custom_mutator=mutate)
    atheris.Fuzz()


def by_hypothesis(trial: Trial, runs: int, seed: int) -> None:
    """Put whatever hypothesis makes of JSON into places of a reader's file."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from campaigns.documents import PLACES, documents

    @seeded(seed)
    @settings(max_examples=-(-runs // PLACES), database=None, deadline=None,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(documents(trial.reader.form, trial.seeds))
    def execute(contents: list[bytes]) -> None:
        for content in contents:
            trial.execute(content)

    execute()


def run_reader(reader: Any, seeds: list[bytes], work: Path, finds: Path, runs: int, engine: str,
               seed: int) -> int:
    """Run an engine over a reader in a process of its own, again after a crash.

    Returns:
        the number of executions.
    """
    counts, attempt, before = Counts(), 0, -1
    while counts.total < runs and counts.total > before and attempt < 20:
        before = counts.total
        base = work.with_name(f"{work.name}-{reader.name.replace(' ', '-')}-{engine}")
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(work, base)
        child = os.fork()
        if not child:
            _be_child(reader, seeds, base, finds, counts, runs - before, engine, seed + attempt)
        status = _wait(child, counts)
        died = os.waitstatus_to_exitcode(status)
        if died:
            path = base / reader.place
            note_find(finds, reader.name, f"the process ended with {died}", "",
                      path.read_bytes() if path.exists() else b"")
        shutil.rmtree(base, ignore_errors=True)
        attempt += 1
    return counts.total


def _be_child(reader: Any, seeds: list[bytes], base: Path, finds: Path, counts: Counts,
              runs: int, engine: str, seed: int) -> None:
    code = 70
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        log = os.open(finds / "engines.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        trial = Trial(reader, seeds, base, finds, counts)
        with limited():
            (by_atheris if engine == "atheris" else by_hypothesis)(trial, runs, seed)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, counts: Counts) -> int:
    started = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() - max(counts.last, started) > _WAIT:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def campaign(executions: int, finds: Path, only: list[str], seed: int, jobs: int) -> None:
    """Run a part of the campaign, and note in `finds` the executions of each reader and engine."""
    try:
        import atheris
    except ImportError:
        atheris = None
    with atheris.instrument_imports(include=["vpltool"]) if atheris else contextlib.nullcontext():
        from campaigns.readers import READERS, begin, make_world
    from campaigns import documents  # noqa: F401  # once, not in each child
    from vpltool.clip.load import import_open_clip

    import_open_clip()

    memory = Path("/dev/shm")
    work = (memory if memory.is_dir() else finds) / f"vpltool-fuzz-{os.getpid()}"
    chosen = [reader for reader in READERS if not only or reader.name.startswith(tuple(only))]
    shares = {"atheris": 0.8, "hypothesis": 0.2} if atheris else {"hypothesis": 1.0}
    before = {(entry["seed"], entry["reader"], entry["engine"]) for entry in notes(finds, "done")}
    try:
        make_world(work)
        seeds = {reader.name: begin(reader, work) for reader in chosen}
        whole = sum(reader.weight for reader in chosen)
        # What a child does not look at stays shared with it, and need not be copied.
        gc.collect()
        gc.freeze()

        def run(reader: Any, engine: str) -> None:
            if (seed, reader.name, engine) in before:
                return
            runs = -(-int(executions * shares[engine] * reader.weight) // whole)
            began = time.monotonic()
            done = run_reader(reader, seeds[reader.name], work, finds, runs, engine, seed)
            note(finds, "done", {"seed": seed, "reader": reader.name, "engine": engine,
                                 "executions": done})
            print(f"{reader.name}: {engine} {done} executions, "
                  f"{time.monotonic() - began:.0f} s", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda pair: run(*pair),
                          [(reader, engine) for reader in chosen for engine in shares]))
    finally:
        for path in work.parent.glob(f"{work.name}*"):
            shutil.rmtree(path, ignore_errors=True)


def note(finds: Path, name: str, entry: dict[str, Any]) -> None:
    """Add a line to a log of a campaign: `done` or `finds`."""
    with (finds / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def notes(finds: Path, name: str) -> list[dict[str, Any]]:
    """Read a log of a campaign."""
    log = finds / f"{name}.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def executions_in(done: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Executions of each reader and engine, in all parts of a campaign."""
    total: Counter[tuple[str, str]] = Counter()
    for entry in done:
        total[entry["reader"], entry["engine"]] += entry["executions"]
    return total


def as_markdown(done: Counter[tuple[str, str]], finds: list[dict[str, Any]]) -> str:
    """The figures of a campaign as a table."""
    engines = sorted({engine for _, engine in done})
    lines = ["| reader | " + " | ".join(engines) + " | finds |",
             "|" + " --- |" * (len(engines) + 2)]
    for name in dict.fromkeys(name for name, _ in done):
        of_reader = {entry["found"] for entry in finds if entry["reader"] == name}
        lines.append(f"| {name} | " + " | ".join(
            f"{done[name, engine]:,}" for engine in engines) + f" | {len(of_reader)} |")
    total = [sum(count for (_, own), count in done.items() if own == engine)
             for engine in engines]
    lines.append(f"| **all: {sum(total):,}** | " + " | ".join(f"{count:,}" for count in total)
                 + f" | {len({(entry['reader'], entry['found']) for entry in finds})} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the campaign; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--finds", type=Path, default=Path("build/fuzz"),
                        help="folder of finds, and of what earlier parts have done")
    parser.add_argument("--out", type=Path, help="file that the table of figures is written to")
    parser.add_argument("--only", default="",
                        help="beginnings of names of readers, separated by commas: stages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--seed", type=int, default=0, help="of this part of the campaign")
    options = parser.parse_args()
    options.finds.mkdir(parents=True, exist_ok=True)
    options.finds = options.finds.resolve()
    earlier = len(notes(options.finds, "finds"))
    campaign(options.executions, options.finds,
             [name for name in options.only.split(",") if name], options.seed, options.jobs)
    finds = notes(options.finds, "finds")
    table = as_markdown(executions_in(notes(options.finds, "done")), finds)
    print(table)
    if options.out:
        options.out.write_text(table)
    for found in finds[earlier:]:
        print(f"{found['reader']}: {found['found']} ({options.finds / found['file']})")
    sys.exit(len(finds) > earlier)


if __name__ == "__main__":
    main()
