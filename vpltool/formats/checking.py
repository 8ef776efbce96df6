"""Validation of files: each against its header, and against the manifest of its folder."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field
from pathlib import Path

from vpltool.errors import VplError, first_line
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.input_folders import InputFolder
from vpltool.formats.kinds import KINDS, check_shapes
from vpltool.formats.manifest import files_of
from vpltool.formats.storage import describe
from vpltool.formats.values import check_values
from vpltool.json_text import JsonObject, parse_json
from vpltool.lazy import Image, safetensors

_LARGEST_HEADER = 1 << 26


@dataclass(frozen=True)
class Faults:
    """What is wrong with the files of a folder.

    Args:
        damaged: file to what is wrong with it.
        foreign: files of another run than their folder's: of other settings or other inputs.
    """

    damaged: dict[Path, str] = field(default_factory=dict)
    foreign: list[Path] = field(default_factory=list)


def faults_in(folder: InputFolder) -> Faults:
    """Check every file of a folder: that it is whole, of the folder's kind, and of its run.

    A PNG without a header is a mask that a person has corrected, and no fault.

    Args:
        folder: the folder.
    """
    faults = Faults()
    for file in files_of(folder.path, KINDS[folder.kind].suffix):
        try:
            header = check_file(file)
            if header is None and file.suffix != ".png":
                faults.damaged[file] = "it has no header of vpltool"
            elif header is not None and header.config_hash != folder.identity:
                faults.foreign.append(file)
        except FileNotFoundError:
            # A command that runs meanwhile has replaced it.
            pass
        except VplError as error:
            faults.damaged[file] = error.message.removeprefix(str(file)).lstrip(": ")
    for key, entry in folder.packed.items():
        # Those of other machines are checked when they are read.
        if entry.path is not None:
            try:
                folder.read_tensors(key)
            except VplError as error:
                faults.damaged.setdefault(entry.index, error.message)
    return faults


def check_file(path: Path) -> Header | None:
    """Check that a .safetensors or a PNG is whole, and return its header; None without one.

    Of a .safetensors the size, the shapes and the numbers are checked, of a PNG the checksum of
    every chunk.

    Raises:
        VplError: it is damaged, or its tensors are not those of its kind.
        FileNotFoundError: it is not there.
    """
    described = describe(path)
    if path.suffix == ".png":
        _check_png(path)
    elif described.header is not None and described.header.kind in KINDS:
        check_shapes(KINDS[described.header.kind], described.shapes, str(path))
        _check_tensors(path, described.header.kind)
    return described.header


def _check_tensors(path: Path, kind: str) -> None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # One after the other: a network is as large as the memory allows.
            for name in file.keys():  # noqa: SIM118
                check_values(kind, {name: file.get_tensor(name)}, str(path))
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise VplError(f"{path} is damaged: {first_line(error)}") from error


def _check_png(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.verify()
    except FileNotFoundError:
        raise
    except Exception as error:
        # Pillow raises whatever its decoders raise: SyntaxError, struct.error, OSError.
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
