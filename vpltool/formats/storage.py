"""Reading and writing single files with an embedded header, including segmenter bundles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO

from vpltool.errors import VplError, first_line, not_readable, then
from vpltool.formats.atomic import PendingFiles, atomic_path
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.kinds import KINDS, check_shapes, check_values, kind_named
from vpltool.formats.rasters import SUFFIXES, scene_header
from vpltool.json_text import JsonObject, parse_json
from vpltool.lazy import Image, Tensor, safetensors, torch

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_HEADER = 1 << 26
_COPY = "copy it again from where it was made"
_RECOMPUTE = f"delete it and run the command that recomputes it, or {_COPY}"


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object, indented so that people can read and edit it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path, made_by: str) -> JsonObject:
    """Read a JSON object.

    Raises:
        VplError: the file is missing or is not a JSON object; the hint is `made_by`.
        NotPermitted: the user may not read it.
    """
    try:
        content = parse_json(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise VplError(f"{path} does not exist", made_by) from None
    except PermissionError as error:
        raise not_readable(path) from error
    except (ValueError, OSError) as error:
        raise VplError(f"{path} cannot be read as JSON ({error})", made_by) from error
    if not isinstance(content, dict):
        raise VplError(f"{path} is not a JSON object", made_by)
    return content


def write_tensors(path: Path, header: Header, tensors: Mapping[str, torch.Tensor],
                  batch: PendingFiles | None = None) -> None:
    """Write a .safetensors file with its header; for `batch`, see `atomic_path`.

    Raises:
        BadValues: a tensor has invalid values, such as NaN.
        VplError: a tensor does not match the header's kind, or the disk is full.
    """
    # safetensors writes memory as it is, so views must be copied first.
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_values(header.kind, whole, f"{path} is not written")
    try:
        content = safetensors.torch.save(whole, metadata={METADATA_KEY: header.to_json()})
    except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
        raise VplError(f"cannot write {path}: {error}") from error
    entries = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    check_shapes(KINDS[header.kind], {
        name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()
        if name != "__metadata__"}, str(path))
    with atomic_path(path, batch) as temporary:
        temporary.write_bytes(content)


def read_tensors(
    path: Path, kind: str, names: tuple[str, ...] = (), made_by: str = ""
) -> tuple[Header, dict[str, torch.Tensor]]:
    """Read the header and the named tensors, or all, of a .safetensors file of a kind.

    Raises:
        VplError: the file is missing, truncated or of another kind, or lacks a tensor; the hint is
            `made_by`, by default the kind's command.
    """
    hint = made_by or kind_named(kind).made_by
    again = f"delete it and run: {hint}" + (f"; or {_COPY}" if kind == "bundle" else "")
    header = expect_header(path, kind, hint)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name)
                       for name in _wanted(names, file.keys(), str(path), hint)}
    except FileNotFoundError as error:
        # The file has just vanished; safetensors' own error has no errno.
        raise VplError(f"no {kind} at {path}", hint) from error
    except safetensors.SafetensorError as error:
        raise VplError(f"{path} is damaged ({error})", again) from error
    check_values(kind, tensors, str(path), again)
    return header, tensors


def expect_header(path: Path, kind: str, hint: str = "") -> Header:
    """Read a file's header and check its kind and tensors.

    Raises:
        VplError: the file is missing, unreadable or of another kind.
    """
    hint = hint or kind_named(kind).made_by
    if path.is_dir():
        raise VplError(f"{path} is a folder, and should be a file of {kind}",
                       then("move it away", hint))
    if not path.is_file():
        raise VplError(f"no {kind} at {path}", hint)
    return _expected(describe(path), kind, path, hint)


def _expected(described: Description, kind: str, where: Path | str, hint: str) -> Header:
    if described.header is None or described.header.kind != kind:
        found = described.header.kind if described.header else "something that vpltool did not make"
        raise VplError(f"{where} holds {found}, expected {kind}", hint)
    check_shapes(KINDS[kind], described.shapes, str(where))
    return described.header


@dataclass(frozen=True)
class Description:
    """The start of a file: its header, and (dtype, shape) by tensor name."""

    header: Header | None
    shapes: dict[str, tuple[str, tuple[int, ...]]]


def describe(path: Path) -> Description:
    """Read a file's header with the standard library alone, so that `inspect` is instant.

    Raises:
        VplError: the file is truncated, or is neither a .safetensors nor a PNG.
        NotPermitted: the user may not read it.
    """
    try:
        if path.suffix == ".png":
            return Description(_png_header(path), {})
        if path.suffix in SUFFIXES:
            return Description(scene_header(path), {})
        with path.open("rb") as file:
            return _describe_tensors(file, path.stat().st_size, path)
    except PermissionError as error:
        raise not_readable(path) from error


def _describe_tensors(file: IO[bytes], size: int, where: Path | str) -> Description:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
        if ".safetensors" not in str(where):
            raise VplError(f"{where} is not a .safetensors file",
                           "name a file that vpltool has written")
        raise VplError(f"{where} is damaged: its {size} bytes are not a .safetensors file",
                       _RECOMPUTE)
    try:
        entries: JsonObject = parse_json(file.read(length))
        text = str(entries.pop("__metadata__", {}).get(METADATA_KEY, ""))
        shapes = {name: (entry["dtype"], tuple(map(int, entry["shape"])))
                  for name, entry in entries.items()}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        for name, (dtype, _) in shapes.items():
            if not isinstance(dtype, str) or not dtype.isidentifier():
                raise ValueError(f"`{name}` has an unknown type")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise VplError(f"{where} is not a .safetensors file ({error})", _RECOMPUTE) from error
    if (expected := 8 + length + max(ends, default=0)) != size:
        raise VplError(f"{where} is truncated: {size} bytes, {expected} expected", _RECOMPUTE)
    return Description(Header.from_json(text, where) if text else None, shapes)


def describe_bytes(content: bytes, where: str) -> Description:
    """Read the header of a .safetensors file in memory; `where` names it in messages.

    Raises:
        VplError: it is truncated, or not a .safetensors file.
    """
    return _describe_tensors(BytesIO(content), len(content), where)


def tensors_of(content: bytes, kind: str, names: tuple[str, ...], where: str, hint: str
               ) -> tuple[Header, dict[str, torch.Tensor]]:
    """Read tensors from a .safetensors file in memory, as `read_tensors` does from disk.

    Raises:
        VplError: it is truncated or of another kind, or lacks a tensor.
    """
    header = _expected(describe_bytes(content, where), kind, where, hint)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise VplError(f"{where} is damaged ({error})", hint) from error
    found = {name: tensors[name] for name in _wanted(names, tensors, where, hint)}
    check_values(kind, found, where, hint)
    return header, found


def _wanted(names: Collection[str], there: Iterable[str], where: str, hint: str) -> list[str]:
    """Return the names of requested tensors, sorted; all tensors if none is requested."""
    if missing := [name for name in names if name not in there]:
        raise VplError(f"{where} holds no `{missing[0]}`", hint)
    return sorted(names or there)


def _png_header(path: Path) -> Header | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) != _PNG_SIGNATURE:
            raise VplError(f"{path} is not a PNG file", _RECOMPUTE)
        while len(start := file.read(8)) == 8:
            length, chunk = struct.unpack(">I4s", start)
            if chunk in (b"IDAT", b"IEND"):
                break
            # A damaged chunk may claim a length of gigabytes.
            content = file.read(min(length, size) + 4)[:length]
            key, _, text = content.partition(b"\0")
            if chunk == b"tEXt" and key == METADATA_KEY.encode():
                return Header.from_json(text.decode("latin-1"), path)
    return None


def check_file(path: Path) -> Header | None:
    """Check that a .safetensors or PNG file is intact; return its header, or None without one.

    Checks sizes, shapes and values of .safetensors, and the checksum of each chunk of a PNG.

    Raises:
        VplError: it is damaged, or its tensors do not match its kind.
        FileNotFoundError: it does not exist.
    """
    described = describe(path)
    kind = described.header.kind if described.header else ""
    if path.suffix == ".png":
        _check_png(path)
    elif kind in KINDS:
        check_shapes(KINDS[kind], described.shapes, str(path))
        _check_tensors(path, kind)
    return described.header


def _check_png(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError:
        raise
    except Exception as error:
        # Pillow raises whatever its decoders raise: SyntaxError, struct.error, OSError.
        raise VplError(f"{path} is damaged: {first_line(error)}") from error


def _check_tensors(path: Path, kind: str) -> None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # One tensor at a time, since a network may fill the memory.
            for name in file.keys():  # noqa: SIM118
                check_values(kind, {name: file.get_tensor(name)}, str(path))
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        # A lack of memory or of open files is no damage: a damaged file may be deleted.
        raise VplError(f"{path} is damaged: {first_line(error)}") from error


def salvaged_header(path: Path) -> Header | None:
    """Return the header of a .safetensors whose data may be damaged; None if it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, VplError,
                             struct.error), path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length < _LARGEST_HEADER:
            entries: JsonObject = parse_json(file.read(length))
            return Header.from_json(entries["__metadata__"][METADATA_KEY], path)
    return None


def write_bundle(path: Path, header: Header, decoder: Mapping[str, Tensor],
                 tower: Mapping[str, Tensor]) -> None:
    """Write a bundle: state dicts of a network and of a tower (empty if the header names a CLIP).

    The header's `facts` hold the configurations to rebuild both, and a hash of the tensors of each,
    `hashes`. Tower tensors are stored in half precision where that is lossless, as for published
    CLIP weights.

    Raises:
        VplError: the file cannot be written.
    """
    parts = {
        "decoder": {f"decoder.{name}": tensor for name, tensor in decoder.items()},
        "tower": {f"tower.{name}": without_loss(tensor) for name, tensor in tower.items()}}
    hashes = {part: _hash_of(tensors) for part, tensors in parts.items() if tensors}
    write_tensors(path, replace(header, facts={**header.facts, "hashes": hashes}),
                  parts["decoder"] | parts["tower"])


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors by name: 16 hex digits of SHA-256."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_part(path: Path, part: str) -> tuple[Header, dict[str, Tensor]]:
    """Read the header of a bundle and its `decoder` or `tower`, half precision as float32.

    Raises:
        VplError: the file is missing, damaged, or not a bundle.
    """
    names = tuple(name for name in describe(path).shapes if name.startswith(f"{part}."))
    header, tensors = read_tensors(path, "bundle", names)
    written = header.facts.get("hashes", {}).get(part)
    # Bundles of earlier versions have none.
    if written is not None and written != _hash_of(tensors):
        raise VplError(f"{path} is damaged: its {part} is not the one that was written",
                       f"{_COPY}; or run: {kind_named('bundle').made_by}")
    return header, {name.removeprefix(f"{part}."): tensor.float() if tensor.dtype.itemsize == 2
                    else tensor for name, tensor in tensors.items()}


def without_loss(tensor: Tensor) -> Tensor:
    """Convert a tensor to half precision if that is lossless; otherwise return it unchanged."""
    half = tensor.half()
    return half if bool((half.to(tensor.dtype) == tensor).all()) else tensor
