"""Methods that are not vpltool's own: their settings, their results and their exceptions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from vpltool import settings
from vpltool.errors import VplError, first_line, is_out_of_memory
from vpltool.methods import faults

TYPES = (str, int, float, bool, Path)
"""Types that a setting may have, also optional or in a tuple."""

_Function: TypeAlias = Callable[..., object]

_files: set[str] = set()
_imported: dict[str, tuple[Path, str]] = {}
"""Name of the module of a file to its path and identity."""
_guards: list[ModuleType] = []
"""Modules whose function is wrapped."""
_paths: dict[type[settings.Settings], Path] = {}
"""Class of the settings of a method to its file."""


def guard(module: ModuleType, path: Path, kind: str, function: str, returns: str,
          reads: Sequence[str] = ()) -> None:
    """Check a method's settings, and have its function's results and exceptions checked.

    `returns` describes the results, for errors; `reads` are the names that `READS` could add.

    Raises:
        VplError: its `Settings` cannot be used.
    """
    _check_settings(module.Settings, path)
    if module not in _guards:
        _guards.append(module)
        # A class of its own says whose settings they are, see `file_of`.
        own = type("Settings", (module.Settings,), {
            "__module__": module.__name__, "__doc__": module.Settings.__doc__})
        setattr(module, own.__name__, own)
        _paths[own] = path
        setattr(module, function, _guarded(vars(module)[function], path,
                                           faults.fault_finder(kind, module), returns, reads))


def import_method(path: Path, kind: str, module: str = "") -> ModuleType:
    """Import the file of a method, or the module of a package; a file again if it has changed.

    Raises:
        VplError: it cannot be imported; the message has its line.
    """
    _files.add(str(path.absolute()))
    try:
        return importlib.import_module(module) if module else _import_file(path, kind)
    except SystemExit as error:
        raise VplError(f"{path}: ends Python when it is imported: SystemExit: {error}") from error
    except Exception as error:
        if fault := fault_of(error):
            raise fault from error
        raise


def _import_file(path: Path, kind: str) -> ModuleType:
    name, state = f"vpltool_method_{kind}_{path.stem}", (path.absolute(), identity_of(path))
    if name in sys.modules and _imported.get(name) == state:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses look their own module up.
    sys.modules[name] = module
    with _helpers_of(path.parent.absolute()):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    _imported[name] = state
    return module


@contextlib.contextmanager
def _helpers_of(folder: Path) -> Iterator[None]:
    """Let a method import the `_*.py` beside it: as they are now, and not those of other folders.

    No bytecode is written, since Python takes it for that of a file of the same second and size.
    """
    before, without = {*sys.modules}, sys.dont_write_bytecode
    importlib.invalidate_caches()
    # Last, so that no method hides a module of its name.
    if is_new := str(folder) not in sys.path:
        sys.path.append(str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = without
        if is_new and str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name in {*sys.modules} - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and name.startswith("_") and Path(file).parent == folder:
                del sys.modules[name]


def identity_of(path: Path) -> str:
    """Return a hash of the file of a method, and of the `_*.py` beside it that it needs."""
    helpers = [file for file in sorted(path.parent.glob("_*.py")) if file.stem != "__init__"]
    files, digest = [path], hashlib.sha256()
    # Grows on the way: a helper may need others.
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        files += [helper for helper in helpers if helper not in files
                  and re.search(rb"\b%s\b" % re.escape(helper.stem.encode()), content)]
    return digest.hexdigest()[:16]


def file_of(of_method: settings.Settings | None) -> Path | None:
    """Return the file of the method whose settings these are; None if it is vpltool's own."""
    return _paths.get(type(of_method)) if of_method is not None else None


def fault_of(error: BaseException) -> VplError | None:
    """Return the error for an exception from the file of somebody's own method, with its line.

    None if it is vpltool's. The text of the traceback decides, which tells of worker processes,
    too.
    """
    if isinstance(error, VplError) or is_out_of_memory(error):
        return None
    shown = "".join(traceback.format_exception(error))
    found = [(match.start(), f"{path}:{match[1]}") for path in _files
             for match in re.finditer(rf'File "{re.escape(path)}", line (\d+)', shown)]
    return VplError(f"{max(found)[1]}: {type(error).__name__}: {first_line(error)}",
                    "VPLTOOL_DEBUG=1 shows the traceback") if found else None


def _guarded(function: _Function, path: Path, fault: faults.Fault, returns: str,
             reads: Sequence[str]) -> _Function:
    """Wrap a method's function: an error in it has its file and line, also one of NumPy.

    Stages take other errors for those of a photo. `fault` says what is wrong with a result, given
    the arguments.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{path}:{code.co_firstlineno}" if code else str(path)

    @functools.wraps(function)
    def checked(*arguments: object, **named: object) -> object:
        name = getattr(function, "__name__", "the function")
        shared = faults.shared_tensors(arguments, code.co_varnames if code else ())
        try:
            made = function(*arguments, **named)
            wrong = fault(arguments, made)
        except (Exception, SystemExit) as error:
            if isinstance(error, VplError) or is_out_of_memory(error):
                raise
            told = fault_of(error) or VplError(
                f"{where}: {type(error).__name__}: {first_line(error)}")
            if isinstance(error, KeyError) and error.args[:1] and error.args[0] in reads:
                told.hint = f"add `{error.args[0]}` to READS: a method is given what it names"
            raise told from error
        if changed := faults.changed_tensor(shared):
            raise VplError(f"{where}: {name} changes `{changed}` in place, and other photos are "
                           "given the same tensor", "`x = x * 2` makes a new one")
        if wrong:
            raise VplError(f"{where}: {name} returned {wrong}", f"it returns {returns}")
        return made

    return checked


def _check_settings(kind: type, path: Path) -> None:
    if not (inspect.isclass(kind) and issubclass(kind, settings.Settings)):
        raise VplError(f"{path}: Settings does not inherit vpltool's",
                       "class Settings(vpltool.settings.Settings)")
    if inspect.get_annotations(kind) and "__dataclass_fields__" not in vars(kind):
        raise VplError(f"{path}: Settings is not a dataclass",
                       "write @dataclass(frozen=True, kw_only=True) above it")
    declared = {entry.name: entry for entry in settings.described(kind)}
    known = {*declared, *(entry.name for entry in dataclasses.fields(settings.Settings))}
    plain = [entry.name for entry in dataclasses.fields(kind) if entry.name not in known]
    if plain:
        raise VplError(f"{path}: `{plain[0]}` is no setting",
                       f"declare it as {plain[0]}: … = setting(DEFAULT, HELP)")
    odd = [entry for entry in declared.values() if entry.type not in TYPES]
    if odd:
        raise VplError(f"{path}: the setting `{odd[0].name}` has a type that no option has",
                       "one of str, int, float, bool and Path, or a tuple of one of them")
