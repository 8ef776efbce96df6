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
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from vpltool import settings
from vpltool.errors import VplError, counted, first_line, is_out_of_memory
from vpltool.lazy import np, torch

TYPES = (str, int, float, bool, Path)
"""Types that a setting may have, also optional or in a tuple."""

_ROLES = ("context_of", "photo_of", "scale", "bias")
"""Tensors of rows that a file of prototypes may hold."""

_Arguments: TypeAlias = tuple[Any, ...]
_Fault: TypeAlias = Callable[[_Arguments, Any], str]
"""What is wrong with what a function made of its arguments; empty if nothing."""
_Function: TypeAlias = Callable[..., Any]

_files: set[str] = set()
_imported: dict[str, tuple[Path, str]] = {}
"""Name of the module of a file to its path and identity."""
_guards: list[ModuleType] = []
"""Modules whose function is wrapped."""
_paths: dict[type[settings.Settings], Path] = {}
"""Class of the settings of a method to its file."""


def guard(module: ModuleType, path: Path, kind: str, function: str, returns: str) -> None:
    """Check a method's settings, and have its function's results and exceptions checked.

    `returns` describes the results, for errors.

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
                                           _FAULTS.get(kind, _no_fault), returns))


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


def fault_of(error: Exception) -> VplError | None:
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


def _guarded(function: _Function, path: Path, fault: _Fault, returns: str) -> _Function:
    """Wrap a method's function: an error in it has its file and line, also one of NumPy.

    Stages take other errors for those of a photo. `fault` says what is wrong with a result, given
    the arguments.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{path}:{code.co_firstlineno}" if code else str(path)

    @functools.wraps(function)
    def checked(*arguments: object, **named: object) -> object:
        try:
            made = function(*arguments, **named)
        except Exception as error:
            if isinstance(error, VplError) or is_out_of_memory(error):
                raise
            raise fault_of(error) or VplError(
                f"{where}: {type(error).__name__}: {first_line(error)}") from error
        if wrong := fault(arguments, made):
            name = getattr(function, "__name__", "the function")
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


def _no_fault(_arguments: _Arguments, _made: object) -> str:
    return ""


def _shown(made: object) -> str:
    """Describe a value: `a Tensor (5, 2)`, `a list`, `None`."""
    if made is None:
        return "None"
    shape = getattr(made, "shape", None)
    return f"a {type(made).__name__}" + ("" if shape is None else f" {tuple(shape)}")


def _fault_of_many(made: object, ids: Sized, what: str) -> str:
    """Say what is wrong if a value is not a list or tuple with an item for each photo."""
    if not isinstance(made, (list, tuple)):
        return _shown(made)
    return "" if len(made) == len(ids) else (
        f"{counted(len(made), what, f'{what}s')} for {counted(len(ids), 'photo', 'photos')}")


def _fault_of_maps(made: object, count: int, grid: tuple[int, int], key: str) -> str:
    """Say what is wrong if a value is not maps (count, h, w) in [0, 1], of the grid's shape."""
    if (not isinstance(made, torch.Tensor) or made.dim() != 3 or len(made) != count
            or 0 in made.shape[1:] or not _has_aspect(made.shape[1:], grid)):
        return f"{_shown(made)} for {key}, which has {counted(count, 'class', 'classes')} on a " \
               f"grid {grid}"
    low, high = (0.0, 1.0) if not count else (float(side) for side in made.float().aminmax())
    # Not the other way round: NaN compares as False.
    inside = low > -1e-3 and high < 1 + 1e-3 and made.is_floating_point()
    return "" if inside else f"values from {low:g} to {high:g} ({made.dtype}) for {key}"


def _has_aspect(shape: Sequence[int], grid: tuple[int, int]) -> bool:
    """Return whether maps of any resolution may be of a grid: their sides differ by a cell."""
    scales = [side / cells for side, cells in zip(shape, grid, strict=True)]
    return abs(scales[0] - scales[1]) * min(grid) < max(scales)


def _fault_of_cams(arguments: _Arguments, made: Any) -> str:
    batch = arguments[0]
    return _fault_of_many(made, batch.ids, "map") or next(filter(None, (
        _fault_of_maps(maps, len(present), batch.grid, key)
        for maps, present, key in zip(made, batch.present, batch.ids, strict=True))), "")


def _fault_of_refined(arguments: _Arguments, made: object) -> str:
    photo = arguments[0]
    return _fault_of_maps(made, len(photo.cams), tuple(photo.cams.shape[1:]), photo.id)


def _fault_of_patches(arguments: _Arguments, made: object) -> str:
    batch = arguments[0]
    if (not isinstance(made, torch.Tensor) or made.dim() != 3 or not made.is_floating_point()
            or made.shape[:2] != (len(batch.ids), batch.grid[0] * batch.grid[1])):
        return f"{_shown(made)} for {counted(len(batch.ids), 'photo', 'photos')} on a grid " \
               f"{batch.grid}"
    norms = made.float().norm(dim=-1)
    return "" if float((norms - 1).abs().max()) < 0.01 else (
        f"patches whose norms are {float(norms.min()):.3g} to {float(norms.max()):.3g}")


def _fault_of_rows(arguments: _Arguments, made: object) -> str:
    _, text, text_index = arguments[:3]
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        return _shown(made)
    rows, index, of_rows = *made[:2], (made[2] if len(made) == 3 else {})
    if (not isinstance(rows, torch.Tensor) or rows.dim() != 2 or not rows.is_floating_point()
            or rows.shape[1] != text.shape[1] or not bool(rows.isfinite().all())):
        return f"{_shown(rows)} as rows, where the text has {tuple(text.shape)}"
    if (not isinstance(index, torch.Tensor) or index.shape != rows.shape[:1]
            or index.is_floating_point()):
        return f"{_shown(index)} as the classes of {counted(len(rows), 'row', 'rows')}"
    wanted, found = ({*part.tolist()} - {0} for part in (text_index, index))
    if wanted != found:
        odd = min(wanted ^ found)
        return (f"no row of class {odd}" if odd in wanted else
                f"rows of class {odd}, which the text does not have")
    odd_names = [name for name, tensor in of_rows.items()
                 if name not in _ROLES or not isinstance(tensor, torch.Tensor)]
    return f"`{odd_names[0]}`, which is none of {', '.join(_ROLES)}" if odd_names else ""


def _fault_of_scores(arguments: _Arguments, made: Any) -> str:
    photos = arguments[0]
    if fault := _fault_of_many(made, photos, "result"):
        return fault
    for scores, photo in zip(made, photos, strict=True):
        if not isinstance(scores, np.ndarray) or scores.shape != photo.scores.shape:
            return f"{_shown(scores)} for scores {photo.scores.shape}"
        if not np.isfinite(scores).all():
            return "values that are not finite"
    return ""


_FAULTS: Mapping[str, _Fault] = {
    "cams": _fault_of_cams, "refiners": _fault_of_refined, "embeddings": _fault_of_patches,
    "estimators": _fault_of_rows, "label_refiners": _fault_of_scores}
"""Kind of method to a function that says what is wrong with a result, given the arguments."""
