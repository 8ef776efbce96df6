"""Reading a CLIP's weight files without running code from them.

A torch checkpoint is a pickle, and unpickling can run any code; a TorchScript archive, OpenAI's
own format, contains a program. Here only tensors are read: safetensors directly, checkpoints with
torch's `weights_only`, archives with an unpickler that refuses all but tensors and containers.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.json_text import JsonObject, parse_json
from vpltool.lazy import Tensor, safetensors, torch

OPENAI_MARK = "input_resolution"
"""An entry beside the weights that only OpenAI's files have, in every format."""

OPENAI_EXTRAS = (OPENAI_MARK, "context_length", "vocab_size")
"""Numbers among the tensors of OpenAI's files."""

_AGAIN = "download it again, or give a CLIP's weights as .pt, .bin or .safetensors"

_ROOM = 1 << 26
"""Unpacked bytes that a zip of any size may hold."""

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError,
               KeyError, struct.error)
"""Errors of `zipfile` for damaged or encrypted files, and unknown compression."""

_BROKEN = (*_ZIP_ERRORS, TypeError, IndexError, AttributeError, MemoryError,
           OverflowError, UnicodeError, AssertionError)
"""Errors of a damaged pickle, whose lengths may be anything."""


@dataclass(frozen=True)
class WeightFile:
    """A file that holds weights, by its first bytes and its table of contents."""

    path: Path
    form: str  # `safetensors`, `torchscript` (the archives that OpenAI publishes), or `torch`
    openai: bool  # whether it has the mark of OpenAI's own files
    names: tuple[str, ...] = ()  # of its tensors; empty if only reading it tells


def recognise(path: Path) -> WeightFile:
    """Recognise the format of a weight file without reading the weights.

    Raises a VplError, with the reason, if it holds no weights: it may be empty, a web page, a Git
    LFS pointer, or truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        raise VplError(f"{path} is empty", _AGAIN)
    if start.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    if start.startswith(b"\x80") and not (
            start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size):
        # A plain pickle, from torch before 1.6; only reading it shows its content. The length at
        # the beginning of a safetensors may have the same first byte.
        return WeightFile(path, "torch", False)
    if len(start) > 8 and start[8:9] == b"{":
        names = tuple(_safetensors_entries(path, size))
        return WeightFile(path, "safetensors", OPENAI_MARK in names, tuple(
            name.removeprefix("module.") for name in names if name != "__metadata__"))
    if start.startswith(b"version https://git-lfs"):
        raise VplError(f"{path} is a Git LFS pointer, not the file that it points to",
                       "run git lfs pull, or download the file itself")
    if start.isascii() and b"\0" not in start:
        text = start.decode().strip()
        what = "a web page" if text.startswith("<") else f"text that begins `{text[:40]}`"
        raise VplError(f"{path} is {what}, not weights".replace("\n", " "), _AGAIN)
    raise VplError(f"{path} is in no known format of weights", _AGAIN)


def _recognise_zip(path: Path) -> WeightFile:
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            held = sum(entry.file_size for entry in archive.infolist())
            # Weights can hardly be compressed.
            if held > _ROOM + 8 * size:
                raise VplError(f"{path} would expand from {size} bytes to {held}: these are not "
                               "weights", _AGAIN)
            content = [name for name in names if name.endswith("/data.pkl")]
            if not content:
                numpy = any(name.endswith(".npy") for name in names)
                what = "a NumPy archive" if numpy else "a zip file"
                raise VplError(f"{path} is {what} without torch's tensors",
                               "use open_clip's own file of this model, .safetensors or .bin")
            openai = OPENAI_MARK.encode() in archive.read(content[0])
    except _ZIP_ERRORS:
        raise VplError(f"{path} is damaged or truncated ({size} bytes)", _AGAIN) from None
    script = any(name.endswith("/constants.pkl") for name in names)
    return WeightFile(path, "torchscript" if script else "torch", openai)


def _safetensors_entries(path: Path, size: int) -> JsonObject:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        try:
            entries = parse_json(file.read(length)) if length <= size - 8 else None
            ends = [int(entry["data_offsets"][1]) for name, entry in (entries or {}).items()
                    if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError):
            raise VplError(f"{path} is in no known format of weights", _AGAIN) from None
    if entries is None or 8 + length + max(ends, default=0) != size:
        expected = 8 + length + max(ends, default=0)
        raise VplError(f"{path} is truncated: {size} bytes of at least {expected}", _AGAIN)
    return dict(entries)


def read_weights(file: WeightFile, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Read a state dict: name, as in open_clip, to tensor, without OpenAI's extra entries.

    Checkpoints of a training run (a dict with `state_dict`, names prefixed with `module.`) are
    unwrapped. `names` are the wanted tensors, if the format allows reading only some. Raises a
    VplError if the file is damaged, or holds more than tensors.
    """
    path = file.path
    try:
        if file.form == "safetensors":
            with safetensors.safe_open(path, "pt") as entries:
                found: object = {name: entries.get_tensor(name) for name in entries.keys()  # noqa: SIM118
                              if names is None or name.removeprefix("module.") in names}
        elif file.form == "torchscript":
            found = _read_archive(path)
        else:
            # Lengths in a bare pickle may be anything; memory holds no more than the file.
            content = path if zipfile.is_zipfile(path) else io.BytesIO(path.read_bytes())
            found = torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VplError(f"{path} holds Python objects, which are not loaded ({_brief(error)})",
                       "if you trust it, save its state_dict() as .safetensors") from error
    except (safetensors.SafetensorError, *_BROKEN) as error:
        raise VplError(f"{path} is damaged ({_brief(error)})", _AGAIN) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    tensors = {} if not isinstance(found, dict) else {
        str(name).removeprefix("module."): value for name, value in found.items()
        if isinstance(value, torch.Tensor)}
    if not tensors:
        raise VplError(f"{path} holds no named tensors", _AGAIN)
    for name in OPENAI_EXTRAS:
        tensors.pop(name, None)
    for name, tensor in tensors.items():
        if tensor.numel() > tensor.untyped_storage().nbytes() // tensor.itemsize:
            raise VplError(f"{path}: `{name}` is {list(tensor.shape)}, more than the file holds",
                           _AGAIN)
    return tensors


@contextlib.contextmanager
def without_random_init() -> Iterator[None]:
    """Skip the random initialisation of new parameters, which are about to be overwritten.

    For ViT-B/16 it takes longer than all other parts of loading.
    """
    from torch.overrides import TorchFunctionMode

    class Constant(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None
                               ) -> object:
            kwargs = kwargs or {}
            if func.__name__ not in ("uniform_", "normal_", "kaiming_uniform_"):
                return func(*args, **kwargs)
            if not args:  # the functions of torch.nn.init
                return kwargs["tensor"]
            # A method. Since torch 2.13 `trunc_normal_` calls it until all values lie within
            # bounds: the mean, or the lower bound, does.
            return args[0].fill_(args[1] if len(args) > 1 else
                                 kwargs.get("mean", kwargs.get("from", 0.0)))

    with Constant():
        yield


def _brief(error: Exception) -> str:
    """Return the part of an error's first line that names the problem; torch adds advice."""
    text = str(error).strip() or type(error).__name__
    at = text.find("Unsupported ")
    return text[max(at, 0):].splitlines()[0].split(". ")[0][:100]


class _Module:
    """Replaces any class of a TorchScript archive: keeps its attributes and does nothing."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _within_itself(content: bytes) -> bytes:
    """Check a pickle's lengths: C's unpickler allocates them before it reads on."""
    for code, argument, _ in pickletools.genops(content):
        if code.name.endswith("PUT") and (argument or 0) >= len(content):
            raise ValueError(f"{code.name} {argument} is beyond its {len(content)} bytes")
    return content


class _ArchiveReader(pickle.Unpickler):
    """Unpickles the modules of a TorchScript archive: tensors and containers, no code."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_within_itself(archive.read(f"{root}data.pkl"))))
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        """Return our replacement for a class or function; the file's own is never imported."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name.endswith("Storage"):
            return self._element_type(name)
        known: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): OrderedDict,
            # as_strided refuses what reaches beyond the storage.
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (
                storage.as_strided(size, stride, offset)),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            # Typed lists; the type is not needed.
            **{("torch.jit._pickle", kind): lambda items, *_: items for kind in (
                "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist",
                "restore_type_tag")}}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"Unsupported {module}.{name}")
        return known[module, name]

    def _element_type(self, storage: str) -> torch.dtype:
        known = {"Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
                 "Double": torch.float64, "Long": torch.int64, "Int": torch.int32,
                 "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}
        if storage.removesuffix("Storage") not in known:
            raise pickle.UnpicklingError(f"Unsupported torch.{storage}")
        return known[storage.removesuffix("Storage")]

    def persistent_load(self, key: Any) -> Tensor:
        """Read the storage `('storage', element type, name, device, length)` as a vector."""
        _, element, name, *_ = key
        if name not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}data/{name}"))
            self.storages[name] = (torch.frombuffer(content, dtype=element) if content
                                   else torch.empty(0, dtype=element))
        return self.storages[name]


def _read_archive(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist()
                    if name.endswith("/data.pkl")).removesuffix("data.pkl")
        return dict(_named_tensors(_ArchiveReader(archive, root).load(), "", set()))


def _named_tensors(module: object, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """List the tensors of a module; refuse one that occurs twice: a file can make circles."""
    if id(module) in seen:
        raise ValueError(f"the module `{prefix}` is in it twice")
    seen.add(id(module))

    found: list[tuple[str, Tensor]] = []
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, torch.Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module):
            found.extend(_named_tensors(value, f"{prefix}{name}.", seen))
    return found
