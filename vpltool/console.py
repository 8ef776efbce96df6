"""Talk on stderr: progress, notes, warnings, errors. Data goes to stdout, by `print`, elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress (`--quiet`); warnings and errors are still shown."""
    global _quiet
    _quiet = quiet


def note(message: str) -> None:
    """Say something that is worth knowing and needs no action."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Say something that may surprise the user later."""
    print(_label("warning", "33") + message, file=sys.stderr, flush=True)


def error(message: str, hint: str = "") -> None:
    """Print the one line of an error, and the hint below it."""
    print(_label("error", "31") + message, file=sys.stderr)
    if hint:
        print(_label("hint", "36") + hint, file=sys.stderr)
    sys.stderr.flush()


def _label(word: str, colour: str) -> str:
    import os

    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        return f"\x1b[{colour}m{word}:\x1b[0m "
    return f"{word}: "


Advance = Callable[..., None]


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere one line at the end, with count and rate.

    Yields:
        `advance(steps=1, text="")`: moves the bar; `text` is shown behind it.
    """
    started = time.monotonic()
    count = 0
    if sys.stderr.isatty() and not _quiet and total:
        from tqdm import tqdm

        with tqdm(total=total, desc=title, file=sys.stderr, leave=False) as bar:

            def advance(steps: int = 1, text: str = "") -> None:
                nonlocal count
                count += steps
                if text:
                    bar.set_postfix_str(text, refresh=False)
                bar.update(steps)

            yield advance
    else:

        def advance(steps: int = 1, text: str = "") -> None:
            nonlocal count
            count += steps

        yield advance
    if count:
        seconds = time.monotonic() - started
        note(f"{title}: {count} in {seconds:.1f} s ({count / max(seconds, 1e-9):.1f}/s)")
