"""Archives and folders for export, written atomically.

The same members give the same bytes: no date and no user is stored.
"""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Collection, Iterable
from io import BytesIO
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.atomic import atomic_folder, atomic_path, write_member


def write_tgz(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Pack (name, content) into a .tgz, one member after the other."""
    with (atomic_path(path) as temporary, temporary.open("wb") as file,
          gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive):
        for name, content in members:
            # A new TarInfo has time 0, and user and group 0 without names.
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Pack (name, content) into a .zip, one member after the other."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in members:
            member = zipfile.ZipInfo(name)  # its default date is 1980-01-01
            member.external_attr = 0o644 << 16
            # PNGs are compressed already.
            stored = name.endswith(".png")
            member.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.writestr(member, content)


def write_folder(path: Path, members: Iterable[tuple[str, bytes]], marks: Collection[str],
                 pictures: tuple[str, ...] = (".png",)) -> None:
    """Write (name, content) into a folder, which replaces an earlier one.

    Args:
        path: the folder.
        members: its files.
        marks: names of the members that every such folder has, besides pictures.
        pictures: suffixes of the pictures.

    Raises:
        VplError: the folder holds other files, or cannot be written.
    """
    there = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    others = [name for name in there if not name.endswith(pictures) and name not in marks]
    if others or (there and not {*marks} <= {*there}) or path.is_file():
        raise VplError(f"{path} holds files that vpltool did not make",
                       "move them away, or choose another folder with `out='DIR'`")
    with atomic_folder(path) as part:
        for name, content in members:
            write_member(part / name, content)
