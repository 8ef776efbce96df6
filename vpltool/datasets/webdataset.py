"""Photo-caption pairs from WebDataset tars, read in order without unpacking.

In such a tar the files of one pair follow each other and differ after the first dot: `0001.jpg`,
`0001.txt`, `0001.json`. Problems are yielded as `Flaw` between the pairs, and reading continues.
Addresses, patterns and the grouping of files are those of the library `webdataset`, which does not
read the tar itself, since it ends silently at a damaged header.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import lzma
import re
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from vpltool.datasets.captions import clean
from vpltool.datasets.layouts import PHOTO_SUFFIXES
from vpltool.errors import VplError, first_few, near_name
from vpltool.json_text import JsonObject, parse_json
from vpltool.lazy import fsspec

if TYPE_CHECKING:
    from typing_extensions import Self

BROKEN = "damaged places"
UNREADABLE = "tars that cannot be read"
NO_PHOTO = "captions without a photo"
NO_CAPTION = "photos without a caption"
EMPTY = "empty captions"
NO_TEXT = "descriptions that are no UTF-8 or no JSON"
TWICE = "files that come twice in a pair"
TOO_LARGE = "photos of more than 64 MB, or texts of more than 1 MB,"

_PHOTOS = frozenset(suffix[1:] for suffix in PHOTO_SUFFIXES)
_TEXTS = ("txt", "caption", "text")
"""Suffixes of texts with a caption a line."""
_CAPTION_FIELDS = ("captions", "caption", "text")
_TAGGED = ("labels", "tags")
"""Fields of the JSON."""
_WANTED = _PHOTOS | {*_TEXTS, "json", "cls"}
_LARGEST = 1 << 26
_LONGEST = 1 << 20
"""Maximum bytes of a photo, and of a text, so that a pair fits into memory."""
_PATTERN = "`DIR/{000..009}.tar` stands for ten tars"
_TAR_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, ValueError,
               OverflowError, RecursionError)
"""Errors of tarfile; RecursionError if hundreds of headers extend each other."""
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
               tarfile.GNUTYPE_LONGLINK)
"""Headers that extend the next one."""
_EMPTY_READS = 100
"""Number of empty reads after which the stream has ended."""
_RATIO = 100
"""Maximum compression ratio of a tar, beyond the largest file; that of texts is about 10."""
_COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)), (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile))
"""First bytes and decompressor; tarfile would hold all decompressed bytes of a part."""


@dataclass(frozen=True)
class Pair:
    """A photo of a tar, the bytes of a file with a suffix such as `jpg`, with captions and tags.

    The names of its files begin with the key. Captions have one line each; tags are names of
    classes, or numbers, as in `cls`.
    """

    tar: str
    key: str
    suffix: str
    photo: bytes
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flaw:
    """Something skipped: its kind, in the plural, and its location."""

    what: str
    where: str


@dataclass
class Flaws:
    """Counts of flaws by kind, with the first locations."""

    counts: Counter[str] = field(default_factory=Counter)
    locations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, flaw: Flaw) -> None:
        """Count a flaw."""
        self.counts[flaw.what] += 1
        if len(self.locations[flaw.what]) < 6:
            self.locations[flaw.what].append(flaw.where)

    def remarks(self) -> list[str]:
        """Return a remark per kind, with the count and the first locations."""
        return [f"skipped {count} {what}: {first_few(self.locations[what])}"
                for what, count in self.counts.items()]


def find_tars(patterns: Iterable[str], *, allow_pipe: bool = False) -> list[str]:
    """Find tars by paths, folders, or addresses such as `https://…` or `s3://…`.

    In these, `{000..009}` stands for ten tars. Only with `allow_pipe` may they start programs.

    Raises:
        VplError: `webdataset` is not installed, nothing is given, a path does not exist, or an
            address starts a program.
    """
    expand = _library("shardlists").expand_urls
    found: list[str] = []
    expanded: list[str]
    for pattern in patterns:
        try:
            expanded = expand(pattern)
        except (AssertionError, ValueError) as error:
            raise VplError(f"{pattern}: {error}", _PATTERN) from error
        for address in expanded:
            if not allow_pipe and _starts_a_program(address):
                raise VplError(f"{address[:200]} starts a program", "only a command line can ask "
                               "for that: give the address there again, with `allow_pipe=True`, "
                               "if you know what it runs")
            found += [address] if _is_remote(address) else _local(address)
    if not found:
        raise VplError("no tar is given", _PATTERN)
    return list(dict.fromkeys(found))


def folder_names(tars: Sequence[str]) -> list[str]:
    """Return a unique folder name for each tar: its file name, after its folders if necessary.

    Names have only letters, digits, dots, hyphens and underscores, and no `..`.
    """
    parts = [[re.sub(r"[^\w.-]", "_", part) for part in tar.replace("\\", "/").split("/")
              if part.strip(".")] or ["tar"] for tar in tars]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["/".join([*own[-count:-1], own[-1].partition(".")[0] or "tar"]) for own in parts]
        if len(set(short)) == len(short):
            return short
    # `a.tar` beside `a.tar.gz`.
    return [f"{name}-{number}" for number, name in enumerate(short)]


def read_tar(address: str) -> Iterator[Pair | Flaw]:
    """Yield the pairs of a tar in order, and its flaws, such as a pair without a photo.

    No name in the tar becomes the name of a file, and links are not followed.
    """
    flaws: list[Flaw] = []

    def note(error: Exception) -> bool:
        flaws.append(Flaw(TWICE, location_of(address, str(error.args[0]).partition(":")[0])))
        return True

    files = _files(address, flaws)
    for sample in _library("tariterators").group_by_keys(files, handler=note):
        yield from flaws
        flaws.clear()
        yield from _pair(sample, address)
    yield from flaws


def _pair(sample: Mapping[str, Any], address: str) -> Iterator[Pair | Flaw]:
    """Yield the pair of the files with one key (photo, texts and JSON), and its flaws."""
    key = str(sample["__key__"])
    location = location_of(address, key)
    flaws: list[Flaw] = []
    texts: list[str] = []
    tags: list[str] = []
    with _noted(flaws, location):
        for suffix in _TEXTS:
            if suffix in sample:
                texts += sample[suffix].decode("utf-8-sig").splitlines() or [""]
    with _noted(flaws, location):
        about = parse_json(sample["json"]) if "json" in sample else {}
        if not isinstance(about, dict):
            raise ValueError("it is not an object")
        texts += _words(about, _CAPTION_FIELDS)
        tags += _words(about, _TAGGED)
    with _noted(flaws, location):
        tags += sample["cls"].decode().split(";") if "cls" in sample else []
    captions, tags_once = (tuple(dict.fromkeys(filter(None, map(clean, words))))
                           for words in (texts, tags))
    if texts and not captions:
        flaws.append(Flaw(EMPTY, location))
    yield from flaws
    photo = next((name for name in sample if name in _PHOTOS), None)
    if photo is not None:
        yield Pair(address, key, photo, sample[photo], captions, tags_once)
    elif captions:
        yield Flaw(NO_PHOTO, location)


@contextlib.contextmanager
def _noted(flaws: list[Flaw], location: str) -> Iterator[None]:
    try:
        yield
    except ValueError:
        # UnicodeDecodeError and JSONDecodeError are among them.
        flaws.append(Flaw(NO_TEXT, location))


def _words(about: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the texts of the first of these fields in a JSON: a text, or a list of texts."""
    found: Any = next((about[name] for name in names if about.get(name) is not None), [])
    return [str(word) for word in (found if isinstance(found, list) else [found])]


def location_of(address: str, key: str) -> str:
    """Name a pair or a file of a tar, for messages."""
    return f"{address}: {key}"


def _files(address: str, flaws: list[Flaw]) -> Iterator[JsonObject]:
    """Yield the files of a tar for `group_by_keys`; append flaws to `flaws`."""
    try:
        with _opened(address) as stream:
            yield from _members(stream, address, flaws)
    except _TAR_ERRORS as error:
        flaws.append(Flaw(UNREADABLE, f"{address} ({_reason(error)})"))


def _members(stream: IO[bytes], address: str, flaws: list[Flaw]) -> Iterator[JsonObject]:
    """Yield the regular files of pairs; after a damaged place, the next intact one."""
    split = _library("tariterators").base_plus_ext
    unfolded: Any = _Unfolded(stream, _LARGEST)
    # Without `ignore_zeros`, reading would end at a damaged header.
    with tarfile.open(fileobj=unfolded, mode="r|", ignore_zeros=True,
                      tarinfo=_headers(address, flaws)) as tar:
        where = address
        try:
            while (member := tar.next()) is not None:
                _, suffix = split(member.name)
                if not member.isreg() or suffix is None or suffix.lower() not in _WANTED:
                    continue
                where = location_of(address, member.name)
                if member.size > (_LARGEST if suffix.lower() in _PHOTOS else _LONGEST):
                    flaws.append(Flaw(TOO_LARGE, where))
                elif (file := tar.extractfile(member)) is not None:
                    yield {"fname": member.name, "data": file.read(), "__url__": address}
                    # Drop the members that `tarfile` collects.
                    tar.members = []  # type: ignore[attr-defined]
                where = address
        except _TAR_ERRORS as error:
            flaws.append(Flaw(BROKEN, f"{where} ({_reason(error)})"))


class _Raw:
    """A stream whose first 6 bytes are known; it counts the bytes read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.head, self.taken = stream, b"", 0
        while len(self.head) < 6 and (more := stream.read(6 - len(self.head))):
            self.head += more

    def read(self, size: int) -> bytes:
        content, self.head = self.head[:size], self.head[len(self.head[:size]):]
        content = content or self.stream.read(size)
        self.taken += len(content)
        return content


class _Unfolded:
    """The decompressed bytes of a tar, with an error for a tar that was made to be endless.

    A header may claim exabytes, which tarfile would skip by reading at the end of the stream; and a
    megabyte may decompress to gigabytes.
    """

    def __init__(self, stream: IO[bytes], largest: int) -> None:
        self.largest = largest
        self.raw: Any = _Raw(stream)
        unfold = next((unfold for magic, unfold in _COMPRESSED if self.raw.head.startswith(magic)),
                      None)
        self.stream = unfold(self.raw) if unfold else self.raw
        self.given = self.empty = 0

    def read(self, size: int) -> bytes:
        content: bytes = self.stream.read(size)
        self.given += len(content)
        self.empty += not content
        if self.empty > _EMPTY_READS:
            raise EOFError("it ends within a file")
        if self.given > _RATIO * self.raw.taken + self.largest:
            raise EOFError(f"it unfolds to more than {_RATIO} times its size")
        return content


def _headers(address: str, flaws: list[Flaw]) -> type[tarfile.TarInfo]:
    """Make a class of headers that records damaged places and a missing end as flaws."""
    damaged, ended = -1, False

    class Noting(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            header = super().frombuf(buf, encoding, errors)
            if header.type in _EXTENSIONS and header.size > _LONGEST:
                raise EOFError(f"a name of {header.size} bytes")
            return header

        @classmethod
        def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
            nonlocal damaged, ended
            try:
                header = super().fromtarfile(tar)
            except tarfile.HeaderError as error:
                kind = type(error).__name__
                ended = ended or kind == "EOFHeaderError"
                if kind in ("InvalidHeaderError", "TruncatedHeaderError"):
                    if damaged < 0 or tar.offset != damaged + tarfile.BLOCKSIZE:
                        flaws.append(Flaw(BROKEN, f"{address}, byte {tar.offset} ({error})"))
                    damaged = tar.offset
                elif kind == "EmptyHeaderError" and not ended:
                    flaws.append(Flaw(BROKEN, f"{address} (it has no end; files may be missing)"))
                raise
            ended = False
            return header

    return Noting


def _opened(address: str) -> IO[bytes]:
    """Open a tar through `webdataset`, or through fsspec for schemes that it does not support."""
    library = _library("gopen")
    scheme = address.partition(":")[0]
    if not _is_remote(address) or scheme in library.gopen_schemes:
        return library.gopen(address)
    try:
        return fsspec.open(address, "rb").open()
    except (ValueError, ImportError) as error:
        raise OSError(error) from error


def _is_remote(address: str) -> bool:
    return "://" in address or address.startswith("pipe:")


def _starts_a_program(address: str) -> bool:
    """Return whether opening an address runs a command that it contains.

    Older versions of `webdataset` insert other addresses, in quotes, into a shell command.
    """
    return address.lower().startswith("pipe:") or (_is_remote(address) and "'" in address)


def _local(address: str) -> list[str]:
    path = Path(address)
    if path.is_dir():
        tars = sorted(path.glob("*.tar*"))
        if not tars:
            raise VplError(f"{path} holds no tar", "give tars, or folders of tars")
        return [file.as_posix() for file in tars]
    if not path.exists():
        beside = [file.as_posix() for file in path.parent.glob("*.tar*")]
        raise VplError(f"{path} does not exist", near_name(path.as_posix(), beside) if beside
                       else _PATTERN)
    return [address]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def _library(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise VplError("tars are read with the package `webdataset`, which is not installed",
                       "pip install 'vpltool[tars]'") from error

