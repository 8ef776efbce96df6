"""Notes, warnings and progress; where they go depends on who listens.

On the command line they go to stderr, by `Terminal`. In a notebook or a program notes go to the
logger `vpltool` if logging is set up, else to where a person sees them; warnings go to Python's
own, and progress is a bar where one can be seen, else a line now and then. Data goes to stdout, and
never through here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

Advance = Callable[..., None]

_LINE_SECONDS = 30.0
"""Where there is no terminal, seconds between two lines of progress."""

_SCRIPT_SECONDS = 10.0
"""The same in a Python program, which says nothing else."""


class Silence:
    """Messages to nobody: of processes that do one thing together only the first speaks.

    Other listeners derive from it.
    """

    def note(self, message: str) -> None:
        """Pass on what is worth knowing and needs no action."""

    def warn(self, message: str) -> None:
        """Pass on what may surprise the user later."""

    def progress(self, title: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """Show how far a piece of work has come."""
        return contextlib.nullcontext(lambda steps=1, text="": None)


class Library(Silence):
    """Messages for Python programs: the logger `vpltool`, `warnings`, and a bar or lines.

    Args:
        since: when the work began of which lines of progress tell; default: each piece's own
            beginning.
    """

    def __init__(self, since: float | None = None) -> None:
        self._told = since

    def note(self, message: str) -> None:
        """Log it; where nobody has set up logging, print it on a terminal and in a notebook."""
        if _is_watched() or _logs():
            self._tell(message)

    def warn(self, message: str) -> None:
        """Warn by Python's `warnings`."""
        warnings.warn(message, stacklevel=3)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show a bar in a notebook or on a terminal; elsewhere a line now and then."""
        if _is_watched():
            from tqdm.auto import tqdm

            with tqdm(total=total, desc=title, leave=False) as bar:
                yield lambda steps=1, text="": _move(bar, steps, text)
            return
        lines = _Lines(title, total, self._tell, _SCRIPT_SECONDS, self._told)
        yield lines.advance
        if self._told is not None:
            self._told = lines.told

    def _tell(self, line: str) -> None:
        """Log a line, or print it: who waits for a script sees that it works."""
        if _logs():
            logging.getLogger("vpltool").info(line)
        else:
            print(_plain(line), file=sys.stderr, flush=True)


def _logs() -> bool:
    """Whether the program has set up logging."""
    logger = logging.getLogger("vpltool")
    return logger.hasHandlers() or logger.level != logging.NOTSET


def _is_watched() -> bool:
    """Whether a person sees stderr: a terminal, or a notebook's kernel."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Terminal(Silence):
    """Messages on stderr.

    Args:
        quiet: no notes and no progress (`--quiet`); warnings and errors are still shown.
        rewrite: turns a message's Python names into what the command line calls them.
        bars: whether progress is a bar on a terminal; not where several processes share it.
        check: called at every step of progress; may raise what ends the work.
    """

    def __init__(self, *, quiet: bool = False, rewrite: Callable[[str], str] = str,
                 bars: bool = True, check: Callable[[], None] = lambda: None) -> None:
        self.quiet = quiet
        self.rewrite = rewrite
        self.bars = bars
        self.check = check
        self._warned: set[str] = set()

    def note(self, message: str) -> None:
        """Print it, unless quiet."""
        if not self.quiet:
            print(_plain(self.rewrite(message)), file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        """Print it after `warning:`; the same one, from another line of a recipe, once."""
        if message not in self._warned:
            self._warned.add(message)
            print(_label("warning", "33") + _plain(self.rewrite(message)), file=sys.stderr,
                  flush=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """Show a bar on a terminal; elsewhere a line now and then, and one at the end."""
        self.check()
        lines = _Lines(title, total, self.note, _LINE_SECONDS)
        with contextlib.ExitStack() as stack:
            bar = None
            if self.bars and sys.stderr.isatty() and not self.quiet and total:
                from tqdm import tqdm

                bar = stack.enter_context(tqdm(total=total, desc=title, file=sys.stderr,
                                               leave=False))
                lines.every = math.inf

            def advance(steps: int = 1, text: str = "") -> None:
                self.check()
                lines.advance(steps, text)
                if bar is not None:
                    _move(bar, steps, text)

            yield advance
        if lines.count:
            seconds = time.monotonic() - lines.started
            self.note(f"{title}: {lines.count} in {seconds:.1f} s "
                      f"({lines.count / max(seconds, 1e-9):.1f}/s)")


class _Lines:
    """Progress as a line now and then: how much is done, and about how long the rest takes."""

    def __init__(self, title: str, total: int, tell: Callable[[str], None], every: float,
                 told: float | None = None) -> None:
        self.title, self.total, self.tell, self.every = title, total, tell, every
        self.count, self.started = 0, time.monotonic()
        self.told = self.started if told is None else told

    def advance(self, steps: int = 1, text: str = "") -> None:
        self.count += steps
        if (now := time.monotonic()) - self.told > self.every:
            self.told = now
            left = (now - self.started) / max(self.count, 1) * max(self.total - self.count, 0)
            self.tell(f"{self.title}: {self.count} of {self.total}, about {duration(left)} left"
                      + (f"; {text}" if text else ""))


def _move(bar: object, steps: int, text: str) -> None:
    if text:
        bar.set_postfix_str(text, refresh=False)  # type: ignore[attr-defined]
    bar.update(steps)  # type: ignore[attr-defined]


def duration(seconds: float) -> str:
    """Format a time for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def age(seconds: float) -> str:
    """Format an age for people: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    return duration(seconds) if seconds < 172800 else f"{seconds / 86400:.0f} days"


def size(count: int) -> str:
    """Format a number of bytes for people: `340 B`, `12 MB`, `1.5 GB`."""
    units, value = ["B", "kB", "MB", "GB", "TB"], float(count)
    while value >= 999.5 and units[1:]:
        value, units = value / 1000, units[1:]
    digits = 1 if units[0] != "B" and value < 9.95 else 0
    return f"{value:.{digits}f} {units[0]}"


_listeners: list[Silence] = [Library()]


@contextlib.contextmanager
def heard_by(listener: Silence) -> Iterator[None]:
    """Send messages to a listener while the block runs, from all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def one_piece() -> contextlib.AbstractContextManager[None]:
    """Count lines of progress over all that the block does: of many short pieces, too."""
    if type(_listeners[-1]) is not Library:
        return contextlib.nullcontext()
    return heard_by(Library(time.monotonic()))


def note(message: str) -> None:
    """Say something that is worth knowing and needs no action."""
    _listeners[-1].note(message)


def warn(message: str) -> None:
    """Say something that may surprise the user later."""
    _listeners[-1].warn(message)


_guided: list[bool] = []


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Leave out advice while the block runs: a recipe takes the next step by itself."""
    _guided.append(True)
    try:
        yield
    finally:
        _guided.pop()


def advise(message: str, say: Callable[[str], None] = note) -> None:
    """Say which command comes next, unless a recipe is at work."""
    if not _guided:
        say(message)


def progress(title: str, total: int) -> contextlib.AbstractContextManager[Advance]:
    """Show how far a piece of work has come.

    Yields:
        `advance(steps=1, text="")`: moves the bar; `text` is shown after it.
    """
    return _listeners[-1].progress(title, total)


def picture(path: Path) -> None:
    """Draw a picture on stderr, where that is a terminal; say so where it cannot be drawn.

    Which protocol the terminal speaks is found by `textual-image`: kitty's, sixels, or coloured
    half blocks.
    """
    if not sys.stderr.isatty() or not os.get_terminal_size(sys.stderr.fileno()).columns:
        warn("no picture is drawn: stderr is not a terminal, or one without a size")
        return
    try:
        from textual_image.renderable import Image
    except ImportError:
        warn("no picture is drawn: pip install 'vpltool[terminal]'")
        return
    from rich.console import Console

    Console(stderr=True).print(Image(path))


def error(message: str, hint: str = "") -> None:
    """Print the one line of an error, and the hint below it; for the command line."""
    print(_label("error", "31") + _plain(message), file=sys.stderr)
    if hint:
        print(_label("hint", "36") + _plain(hint), file=sys.stderr)
    sys.stderr.flush()


def interrupted() -> None:
    """Print that Ctrl-C or SIGTERM has ended the program; `vpltool.__main__` has the same words."""
    error("interrupted; finished results are kept", "run the same command again to continue")


_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))
             if chr(code) not in "\t\n"}


def _plain(message: str) -> str:
    """A message without control characters: a name in a file must not command the terminal."""
    return message.translate(_CONTROLS)


def _label(word: str, colour: str) -> str:
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{colour}m{word}:\x1b[0m "
    return f"{word}: "
