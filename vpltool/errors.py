"""`VplError`, the error for users; words for messages; and errors that replace libraries' own."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import logging
import os
import shlex
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


class VplError(Exception):
    """An error that the user can fix, with a hint on what to do next.

    Code in backticks is Python: `` `phi=0.4` `` names a setting, `` `extract(split='train')` `` a
    call. The command line translates both (`vpltool.shell`): `--phi 0.4`, `vpltool extract --split
    train`.

    Args:
        message: what is wrong, on one line, with the file and the value; no trailing period.
        hint: the next call, or the setting to change; empty if there is none.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class NotPermitted(VplError):
    """The user may not do something with a file or folder that is there and intact."""


def not_permitted(path: Path, action: str, right: str, before: str = "", otherwise: str = ""
                  ) -> NotPermitted:
    """Return the error for a file or folder with its owner and mode.

    Args:
        action: such as "read"; `before` begins the message.
        right: letters of the needed rights in `chmod`; `otherwise` ends the hint.
    """
    found = path.stat()
    try:
        owner = path.owner()
    except (KeyError, NotImplementedError):
        owner = str(found.st_uid)
    mode = stat.S_IMODE(found.st_mode)
    message = f"{before}you may not {action} {path} (owner {owner}, mode {mode:03o})"
    own = os.name == "nt" or found.st_uid == os.geteuid()
    who = "u" if own else "g" if found.st_gid in (os.getegid(), *os.getgroups()) else "o"
    granted = mode >> {"u": 6, "g": 3, "o": 0}[who]
    missing = "".join(letter for letter in right if not granted & {"r": 4, "w": 2, "x": 1}[letter])
    if os.name == "nt" or not missing:
        return NotPermitted(message, f"ask the owner or the administrator{otherwise}")
    return NotPermitted(message, f"{'run' if own else 'ask the owner to run'}: chmod "
                                 f"{who}+{missing} {shlex.quote(str(path))}{otherwise}")


def not_readable(path: Path) -> NotPermitted:
    """Return the error for a file that the user may not read; it must be there."""
    for above in reversed(path.absolute().parents):
        if not os.access(above, os.X_OK):
            return not_permitted(above, "enter", "x")
    return not_permitted(path, "read", "r")


class PhotosFailed(VplError):
    """Some photos, given by id, failed; the others are done, with the `result` of the stage."""

    def __init__(self, message: str, hint: str = "", result: object = None,
                 photos: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.result = result
        self.photos = tuple(photos)


class ReaderGone(BrokenPipeError):
    """The reader of our output closed it before the work was done, as in `2>&1 | head`."""


class OtherSettings(VplError):
    """A result exists that was made with other settings; or, if `stale`, only from other inputs."""

    def __init__(self, message: str, hint: str = "", *, stale: bool = False) -> None:
        super().__init__(message, hint)
        self.stale = stale


def check_package(module: str, message: str, hint: str) -> None:
    """Raise a VplError with this message and hint unless a module is installed."""
    if importlib.util.find_spec(module) is None:
        raise VplError(message, hint)


def check_skimage(what: str, otherwise: str = "") -> None:
    """Raise a VplError unless scikit-image is installed.

    `what` begins the message, `otherwise` ends the hint.
    """
    check_package("skimage", f"{what} scikit-image, which is not installed",
                  f"pip install 'vpltool[superpixels]'{otherwise and f', or {otherwise}'}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports a lack of memory, on a GPU or on a CPU.

    Its text decides, since torch raises a plain RuntimeError on a CPU.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _SHORTAGE))


_SHORTAGE = ("out of memory", "can't allocate memory", "not enough memory", "_alloc_failed")


def near_name(wanted: str, known: Iterable[str]) -> str:
    """Return a hint with the nearest name, "did you mean `cat`?", or with all names."""
    names = sorted(known)
    if hint := other_case(wanted, names):
        return hint
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    return f"one of: {shown}" if shown else "there are none"


def near_path(path: Path) -> str:
    """Return a hint with the nearest path in the same folder; empty if there is none."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return ""
    alike = [name for name in names if name.casefold() == path.name.casefold()]
    close = alike or difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean `{(path.parent / close[0]).as_posix()}`?" if close else ""


def then(hint: str, further: str) -> str:
    """Append a further step to a hint, which may be a question."""
    if hint.endswith("?"):
        return f"{hint} Then {further}"
    return f"{hint}; then {further}" if hint else further


def other_case(wanted: str, known: Iterable[str]) -> str:
    """Return a hint if a name is known in a different case; else an empty string."""
    alike = [name for name in known if name.casefold() == wanted.casefold()]
    return f"did you mean `{min(alike)}`? Names are case-sensitive" if alike else ""


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Silence logging and warnings of libraries, whose errors vpltool reports."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the words that agree with it: `1 photo is`, `2 photos are`."""
    return f"{number} {one if number == 1 else many}"


def part_of(part: int, whole: int, things: str, one: str, many: str) -> str:
    """Return a part of things with the words that agree with it: `1 of 48 rows has`."""
    return f"{part} of {whole} {things} {one if part == 1 else many}"


def first_few(names: Iterable[str], between: str = ", ") -> str:
    """Join the first five names, with `…` if there are more."""
    names = list(names)
    return between.join(names[:5]) + (f"{between}…" if names[5:] else "")


def fix_and_repeat(number: int, again: str) -> str:
    """Return the hint for photos that failed; `again` is such as `run the recipe again`."""
    them, these = ("it", "it is") if number == 1 else ("them", "these are")
    return f"fix {them} and {again}: only {these} processed"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, shortened; its class if it has no text."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    first = lines[0]
    if len(first) <= _LONGEST:
        return first
    whole, ends, _ = first[:_LONGEST].rpartition(". ")
    return whole if ends else f"{first[:_LONGEST]} …"


_LONGEST = 200
"""Maximum number of characters shown of another library's error."""

_KILLED = ("DataLoader worker (pid", "process pool was terminated")
"""Errors of torch and Python after a worker process was killed."""

_DEVICE_FAILED = ("CUDA error", "CUBLAS_STATUS_", "cuDNN error", "CUDNN_STATUS_", "HIP error")
"""Errors of torch after a GPU has failed."""


def explain(error: Exception) -> VplError | None:
    """Return the error to show for an exception; None if only a traceback helps."""
    if isinstance(error, VplError):
        return error
    if isinstance(error, FileNotFoundError) and error.errno is None:
        # An error of safetensors, whose text names the file.
        return VplError(first_line(error), "VPLTOOL_DEBUG=1 shows the traceback")
    if isinstance(error, PermissionError) and isinstance(error.filename, str) and not os.access(
            error.filename, os.R_OK):
        # What is not there was to be written.
        with contextlib.suppress(OSError):
            return not_readable(Path(error.filename))
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        where = f" ({error.filename})" if error.filename else ""
        return VplError(f"{error.strerror or error}{where}",
                        "VPLTOOL_DEBUG=1 shows the traceback")
    if any(words in str(error) for words in _KILLED):
        return VplError("a worker process was killed, most likely for lack of memory",
                        "use fewer workers: `workers=0`; the same command continues where "
                        "it stopped")
    if is_out_of_memory(error):
        return VplError(str(error).partition("\n")[0] or "out of memory",
                        "close other programs, or `device='cpu'`; finished results are kept")
    if any(words in str(error) for words in _DEVICE_FAILED):
        return VplError(f"the device has failed: {first_line(error)}",
                        "the same command continues where it stopped; `device='cpu'` avoids it")
    return None
