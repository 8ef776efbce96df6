"""Archives for evaluation servers: the same members give the same bytes, on any day, by anyone."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from vpltool.formats.storage import atomic_path


def write_tgz(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Pack (name, content) into a .tgz, one member after the other."""
    with (atomic_path(path) as temporary, temporary.open("wb") as file,
          gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive):
        for name, content in members:
            # As made, a TarInfo has time 0, and user and group 0 without a name.
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Pack (name, content) into a .zip, one member after the other."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in members:
            member = zipfile.ZipInfo(name)  # as made, its date is 1980-01-01
            member.external_attr = 0o644 << 16
            # A PNG does not get smaller.
            stored = name.endswith(".png")
            member.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.writestr(member, content)
