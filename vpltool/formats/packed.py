"""Tar archives of per-photo files, written by `pack` and read by byte ranges from an index.

The folder `.packed` holds an index per tar: the tar's address, and for each photo the byte range of
its member, from the start of the tar header to the end of the content. The tar lies beside the
index, or at an address that fsspec supports. Members have the same bytes as the original files.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from vpltool.errors import VplError, first_line
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import OBJECT, TEXT, check_fields
from vpltool.json_text import parse_json
from vpltool.lazy import fsspec
from vpltool.names import leads_out

PACKED = ".packed"
"""Subfolder of an artifact that holds the indices."""

_NEEDS = "an address needs its package (s3fs comes with `vpltool[tars]`), and its variables"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://(?!.*::).+")
"""Excludes fsspec's chains, such as `filecache::s3://…`, some of which write files."""


@dataclass(frozen=True)
class TarSlice:
    """The location of a photo's file: a tar and a byte range."""

    index: Path  # the index file that defines it
    tar: str  # the tar's address: name of a file beside the index, or `SCHEME://…`
    start: int  # offset of the member's header
    end: int  # offset after the last byte of its content

    def __str__(self) -> str:
        return str(self.path or self.tar)

    @property
    def path(self) -> Path | None:
        """Path of the tar if it is a local file, else None."""
        if self.tar.startswith("file://"):
            return Path(self.tar.removeprefix("file://"))
        return None if "://" in self.tar else self.index.with_name(self.tar)


def packed_slices(folder: Path) -> dict[str, TarSlice]:
    """Return the locations of packed files by photo id; empty for a folder without tars.

    Raises:
        VplError: an index is damaged.
    """
    return {key: entry for index in sorted((folder / PACKED).glob("*.json"))
            for key, entry in _read_index(index)}


def _read_index(index: Path) -> Iterator[tuple[str, TarSlice]]:
    try:
        content = parse_json(index.read_text("utf-8"))
        check_fields(content, {"tar": TEXT, "members": OBJECT})
        tar = content["tar"]
        if not _ADDRESS.fullmatch(tar) and (leads_out(tar) or "/" in tar):
            raise ValueError(f"`tar` is neither a file beside it nor an address: {tar}")
        for key, entry in content["members"].items():
            if not (isinstance(entry, list) and len(entry) == 2
                    and all(type(number) is int for number in entry)
                    and 0 <= entry[0] < entry[1] < 1 << 62):
                raise ValueError(f"`members` has no bytes for {key}")
            yield key, TarSlice(index, tar, *entry)
    except (ValueError, OSError) as error:
        raise VplError(f"{index} is damaged: {error}", _again(index)) from error


def _again(index: Path) -> str:
    return f"delete {index}; the command that made its photos' files recomputes them"


def read_packed(entry: TarSlice, name: str) -> bytes:
    """Read a file from a tar with a single range request; its member must be called `name`.

    Raises:
        VplError: the tar cannot be read, or the member is damaged or has another name.
    """
    try:
        part = _bytes_of(entry)
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:
            member = tar.next()
            if member is None or member.name != name or not member.isreg():
                raise ValueError(f"no {name} where the index says")
            # A sparse member would expand.
            if member.size > len(part) or member.sparse is not None:
                raise ValueError(f"{name} is cut off")
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
    except (ValueError, OSError, EOFError, OverflowError, RecursionError,
            tarfile.TarError) as error:
        raise VplError(f"{entry} is damaged: {error}", _again(entry.index)) from error
    return content


def _bytes_of(entry: TarSlice) -> bytes:
    if entry.path is None:
        try:
            system, path = fsspec.core.url_to_fs(entry.tar)
            part = bytes(system.cat_file(path, start=entry.start, end=entry.end))
        except Exception as error:
            # fsspec's file systems raise the exceptions of their libraries.
            raise VplError(f"{entry.tar} cannot be read: {first_line(error)}", _NEEDS) from error
    elif not entry.path.is_file():
        raise OSError("there is no such file")
    else:
        with entry.path.open("rb") as file:
            # Clip the range first: `read` allocates what is requested.
            size = file.seek(0, io.SEEK_END)
            file.seek(min(entry.start, size))
            part = file.read(min(entry.end, size) - file.tell())
    if len(part) != entry.end - entry.start:
        raise ValueError("it is truncated")
    return part


def write_tar(folder: Path, name: str, at: str, files: Mapping[str, Path]) -> TarSlice:
    """Pack files into a tar, and write its index once the tar is complete.

    No dates or users are stored, so the same files give the same bytes. Returns a slice that
    covers the whole tar. `folder` is that of the artifact, `name` the file name of tar and index
    without suffix, `at` the destination of the tar, `SCHEME://…`, empty: beside its index; `files`
    are paths by photo id.

    Raises:
        VplError: it cannot be written.
    """
    index = folder / PACKED / f"{name}.json"
    tar = f"{at.rstrip('/')}/{name}.tar" if at else f"{name}.tar"
    entry = TarSlice(index, tar, 0, 0)
    if entry.path is None:
        members = _uploaded(tar, files)
    else:
        with atomic_path(entry.path) as temporary, temporary.open("wb") as stream:
            members = _pack(stream, files)
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps({"tar": tar, "members": members}, ensure_ascii=False,
                                        separators=(",", ":")) + "\n", "utf-8")
    return replace(entry, end=_end_of(members))


def _pack(stream: IO[bytes], files: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Write a tar; return the byte range of each member by id."""
    members = {}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key, file in files.items():
            content = file.read_bytes()
            member = tarfile.TarInfo(key + file.suffix)
            member.size, start = len(content), archive.offset
            archive.addfile(member, io.BytesIO(content))
            padding = -len(content) % tarfile.BLOCKSIZE
            members[key] = (start, archive.offset - padding)
    return members


def _end_of(members: Mapping[str, tuple[int, int]]) -> int:
    return max(end for _, end in members.values())


def _uploaded(address: str, files: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Write a tar to an address, and verify its size, because the files are deleted next."""
    try:
        system, path = fsspec.core.url_to_fs(address)
        with system.open(path, "wb") as stream:
            members = _pack(stream, files)
        system.invalidate_cache()
        if system.info(path)["size"] < _end_of(members):
            raise OSError("the upload is incomplete")
    except Exception as error:
        raise VplError(f"{address} cannot be written: {first_line(error)}", _NEEDS) from error
    return members
