"""Notes, warnings and progress, which go to the current listener.

On the command line `Terminal` prints them on stderr. In a notebook or a program, `Library` logs
notes to the logger `vpltool` if logging is set up, else prints them; warnings are Python's, and
progress is a bar on a terminal, elsewhere a line now and then. Data goes to stdout, not through
this module.
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
"""Seconds between two lines of progress without a terminal."""

_SCRIPT_SECONDS = 10.0
"""The same in a Python program, which prints nothing else."""


class Listener:
    """Receives messages, and drops them."""

    prints = False
    """Whether results go to stdout."""

    def result(self, text: str) -> None:
        """Show the result of a command within a recipe."""

    def note(self, message: str) -> None:
        """Show a message that needs no action."""

    def warn(self, message: str) -> None:
        """Show a message about what may surprise the user later."""

    def progress(self, title: str, total: int) -> contextlib.AbstractContextManager[Advance]:
        """Show the progress of a piece of work."""
        return contextlib.nullcontext(lambda steps=1, text="": None)


class Silence(Listener):
    """A listener of nothing: of processes that work together, only the first speaks."""


class Library(Listener):
    """A listener of Python programs: the logger `vpltool`, `warnings`, and a bar or lines.

    Lines of progress count from `since`, by default from the beginning of each piece of work.
    """

    def __init__(self, since: float | None = None) -> None:
        self._told = since

    def note(self, message: str) -> None:
        """Log the message; without logging, print it on a terminal or in a notebook."""
        if _is_watched() or _logs():
            self._tell(message)

    def result(self, text: str) -> None:
        """Treat it as a message: the program gets results from the call."""
        self.note(text)

    def warn(self, message: str) -> None:
        """Warn through Python's `warnings`."""
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
        """Log a line, or print it, so that a script shows that it is working."""
        if _logs():
            logging.getLogger("vpltool").info(line)
        else:
            print(_plain(line), file=sys.stderr, flush=True)


def _logs() -> bool:
    logger = logging.getLogger("vpltool")
    return logger.hasHandlers() or logger.level != logging.NOTSET


def _is_watched() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Terminal(Listener):
    """A listener that prints on stderr.

    Args:
        quiet: whether notes and progress are dropped (`--quiet`).
        rewrite: translates the Python in messages for the command line.
        bars: whether progress is a bar on a terminal, which only one process can draw.
        check: called at every step of progress; may raise an exception that ends the work.
        prints: whether results go to stdout, or beside the messages.
    """

    def __init__(self, *, quiet: bool = False, rewrite: Callable[[str], str] = str,
                 bars: bool = True, check: Callable[[], None] = lambda: None,
                 prints: bool = True) -> None:
        self.quiet = quiet
        self.rewrite = rewrite
        self.bars = bars
        self.check = check
        self.prints = prints
        self._warned: set[str] = set()

    def note(self, message: str) -> None:
        """Print the message, unless quiet."""
        if not self.quiet:
            print(_plain(self.rewrite(message)), file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """Print the result on stdout, where pipes read it."""
        if self.prints:
            print(text, flush=True)
        else:
            self.note(text)

    def warn(self, message: str) -> None:
        """Print the message after `warning:`, but each message only once."""
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
    """Progress as a line now and then, with an estimate of the remaining time."""

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


_listeners: list[Listener] = [Library()]


@contextlib.contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Send messages to a listener while the block runs, from all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def timed_as_one() -> contextlib.AbstractContextManager[None]:
    """Show progress once the whole block takes long, though each piece of work in it is short."""
    if type(_listeners[-1]) is not Library:
        return contextlib.nullcontext()
    return heard_by(Library(time.monotonic()))


def note(message: str) -> None:
    """Show a message that needs no action."""
    _listeners[-1].note(message)


def result(text: str) -> None:
    """Show the result of a command within a recipe: on the command line on stdout."""
    _listeners[-1].result(text)


def prints() -> bool:
    """Return whether results go to stdout."""
    return _listeners[-1].prints


def warn(message: str) -> None:
    """Show a message about what may surprise the user later."""
    _listeners[-1].warn(message)


_guided: list[bool] = []


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Drop advice while the block runs, since a recipe takes the next step itself."""
    _guided.append(True)
    try:
        yield
    finally:
        _guided.pop()


def advise(message: str, say: Callable[[str], None] = note) -> None:
    """Show which command comes next, unless a recipe is running."""
    if not _guided:
        say(message)


def progress(title: str, total: int) -> contextlib.AbstractContextManager[Advance]:
    """Show the progress of a piece of work.

    Yields:
        `advance(steps=1, text="")`, which moves the bar; `text` is shown after it.
    """
    return _listeners[-1].progress(title, total)


def picture(path: Path) -> None:
    """Draw a picture on stderr if it is a terminal; warn if it cannot be drawn.

    `textual-image` detects the protocol of the terminal: kitty's, sixels, or coloured half blocks.
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
    """Print an error of the command line, and its hint below."""
    print(_label("error", "31") + _plain(message), file=sys.stderr)
    if hint:
        print(_label("hint", "36") + _plain(hint), file=sys.stderr)
    sys.stderr.flush()


def interrupted() -> None:
    """Print that Ctrl-C or SIGTERM ended the program; `vpltool.__main__` has the same words."""
    error("interrupted; finished results are kept", "run the same command again to continue")


_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))
             if chr(code) not in "\t\n"}


def _plain(message: str) -> str:
    """Replace control characters, since a name in a file must not control the terminal."""
    return message.translate(_CONTROLS)


def _label(word: str, colour: str) -> str:
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{colour}m{word}:\x1b[0m "
    return f"{word}: "
