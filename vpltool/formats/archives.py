"""Archives and folders for other programs, written atomically, replaced only if unmodified.

No dates or users are stored, so that the same members give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from io import BytesIO
from pathlib import Path

from vpltool.errors import VplError, counted
from vpltool.formats.atomic import atomic_folder, atomic_path
from vpltool.formats.fields import NUMBER_OF, TEXT, check_fields
from vpltool.json_text import JsonObject, parse_json

MARK = "vpltool-export.json"
"""File in an exported folder that lists the files written there with their checksums."""

_MOVE_AWAY = "move them away, or choose another folder with `out='DIR'`"

Member = tuple[str, bytes]
"""Relative path of a file, and its content."""


def write_tgz(path: Path, members: Iterable[Member]) -> None:
    """Pack members into a .tgz as they come."""
    with (atomic_path(path) as temporary, temporary.open("wb") as file,
          gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive):
        for name, content in members:
            # A new TarInfo has time 0, and user and group 0 without names.
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def write_zip(path: Path, members: Iterable[Member]) -> None:
    """Pack members into a .zip as they come."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in members:
            member = zipfile.ZipInfo(name)  # its default date is 1980-01-01
            member.external_attr = 0o644 << 16
            # PNGs are compressed already.
            stored = name.endswith(".png")
            member.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.writestr(member, content)


def _files_in(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_tree(path: Path, members: Iterable[Member], form: str, kept: Collection[str] = (),
               imported: Collection[str] = (), rescue: str = "") -> None:
    """Write an export folder of a format, replacing an earlier one if it is unmodified.

    Args:
        kept: splits whose files are copied from the earlier folder unless rewritten.
        imported: modified files that may be replaced.
        rescue: call that imports modified files, for the hint.

    Raises:
        VplError: the folder holds other or modified files, or cannot be written.
    """
    before = _check_untouched(path, imported, (
        f"{rescue} imports corrections; then " if rescue else "") + _MOVE_AWAY)
    written: dict[str, int] = {}
    with atomic_folder(path) as part:
        for name, content in members:
            _put(part / name, content)
            written[name] = zlib.crc32(content)
        for name, checksum in before.items():
            if name not in written and any(_is_of(name, split) for split in kept):
                _put(part / name, (path / name).read_bytes())
                written[name] = checksum
        (part / MARK).write_text(json.dumps({"format": form, "files": written}, indent=1) + "\n",
                                 "utf-8")


def splits_in(path: Path, form: str, folder: str) -> list[str]:
    """Return the splits in an export folder of a format: the subfolders of `folder`."""
    if _mark_of(path).get("format") != form or not (path / folder).is_dir():
        return []
    return sorted(entry.name for entry in (path / folder).iterdir() if entry.is_dir())


def _is_of(name: str, split: str) -> bool:
    return split in Path(name).parts[:-1] or Path(name).stem.endswith(f"_{split}")


def _mark_of(path: Path) -> JsonObject:
    try:
        content = parse_json((path / MARK).read_text("utf-8"))
        check_fields(content, {}, {"files": NUMBER_OF, "format": TEXT})
    except (OSError, ValueError):
        return {}
    return dict(content)


def _check_untouched(path: Path, imported: Collection[str], hint: str) -> dict[str, int]:
    """Check that a folder holds only unmodified files of vpltool; return their checksums."""
    there = _files_in(path)
    known: dict[str, int] = _mark_of(path).get("files", {})
    others = sorted(there - {MARK} - known.keys())
    if others or path.is_file():
        raise VplError(f"{path} holds files that vpltool did not make, such as "
                       f"{others[0] if others else path.name}", _MOVE_AWAY)
    changed = sorted(name for name in (there & known.keys()).difference(imported)
                     if zlib.crc32((path / name).read_bytes()) != known[name])
    if changed:
        raise VplError(counted(len(changed), f"file in {path} was changed since vpltool wrote it",
                               f"files in {path} were changed since vpltool wrote them")
                       + f", such as {changed[0]}", hint)
    return {name: known[name] for name in sorted(there & known.keys())}
