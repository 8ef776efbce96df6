"""Photo-caption pairs from WebDataset tars, read in order: nothing is unpacked.

In such a tar the files of one pair follow each other and differ in what is after the first dot:
`0001.jpg`, `0001.txt`, `0001.json`. What is wrong is yielded as a `Flaw` between the pairs, and
reading goes on. Addresses, patterns and the grouping of files are those of the library
`webdataset`; the tar itself is not read by it, since it ends without a word at a damaged header.
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
from vpltool.datasets.tags import some
from vpltool.errors import VplError, near_name
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
"""Most bytes of a photo, and of a text: a pair of them fits into memory, however it is packed."""
_PATTERN = "`DIR/{000..009}.tar` stands for ten tars"
_TAR_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError, ValueError,
               OverflowError, RecursionError)
"""What tarfile raises; the last one where hundreds of headers extend each other."""
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
               tarfile.GNUTYPE_LONGLINK)
"""Headers that extend the next one."""
_EMPTY_READS = 100
"""After so many reads of nothing there will be nothing more."""
_RATIO = 100
"""Most bytes that a byte of a compressed tar may stand for, beyond the largest file; texts: 10."""
_COMPRESSED: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda raw: gzip.GzipFile(fileobj=raw)), (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile))
"""First bytes, and what unfolds them; tarfile itself would hold all that a part unfolds to."""


@dataclass(frozen=True)
class Pair:
    """A photo of a tar, the bytes of a file with a suffix such as `jpg`, and what is said of it.

    The names of its files have the key in common. Captions are on one line each; tags are names of
    classes, or their numbers as `cls` has them.
    """

    tar: str
    key: str
    suffix: str
    photo: bytes
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flaw:
    """Something that is left out: what it is, in the plural, and where."""

    what: str
    where: str


@dataclass
class Flaws:
    """Counts flaws; of each kind the first five places are kept, however many there are."""

    counts: Counter[str] = field(default_factory=Counter)
    locations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, flaw: Flaw) -> None:
        """Count a flaw."""
        self.counts[flaw.what] += 1
        if len(self.locations[flaw.what]) < 6:
            self.locations[flaw.what].append(flaw.where)

    def remarks(self) -> list[str]:
        """Say of each kind how many there are, and where the first are."""
        return [f"skipped {count} {what}: {some(self.locations[what])}"
                for what, count in self.counts.items()]


def find_tars(patterns: Iterable[str], *, allow_pipe: bool = False) -> list[str]:
    """Find tars by paths, folders, or addresses such as `https://…` or `s3://…`.

    In these, `{000..009}` stands for ten of them. With `allow_pipe`, one may start a program.

    Raises:
        VplError: `webdataset` is not installed, nothing is given, a path is not there, or an
            address starts a program and may not.
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
    """Give each tar the name of a folder of its own: its file name, and what precedes if need be.

    Names have letters, digits, dots, hyphens and underscores only, and no `..`.
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
    """Yield the pairs of a tar in their order, and what is wrong in it.

    A pair without a caption is yielded; without a photo it is a flaw. No name in the tar becomes
    the name of a file here; links are not followed.
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
    """Make a pair of the files that have one key: photo, texts and JSON; and what is wrong."""
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
    """Texts of a JSON's first field that has one of these names: a text, or a list of them."""
    found: Any = next((about[name] for name in names if about.get(name) is not None), [])
    return [str(word) for word in (found if isinstance(found, list) else [found])]


def location_of(address: str, key: str) -> str:
    """Name a pair or a file of a tar, for messages."""
    return f"{address}: {key}"


def _files(address: str, flaws: list[Flaw]) -> Iterator[JsonObject]:
    """Yield the files of a tar as `group_by_keys` takes them; what is wrong goes to `flaws`."""
    try:
        with _opened(address) as stream:
            yield from _members(stream, address, flaws)
    except _TAR_ERRORS as error:
        flaws.append(Flaw(UNREADABLE, f"{address} ({_reason(error)})"))


def _members(stream: IO[bytes], address: str, flaws: list[Flaw]) -> Iterator[JsonObject]:
    """The regular files that belong to pairs; after a damaged place, the next that is whole."""
    split = _library("tariterators").base_plus_ext
    headers = _headers(address, flaws)
    # Without `ignore_zeros`, a damaged header would be the end.
    whole: Any = _Unfolded(stream, _LARGEST)
    with tarfile.open(fileobj=whole, mode="r|", ignore_zeros=True, tarinfo=headers) as tar:
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
                    # A tar keeps what it knows of each member.
                    tar.members = []  # type: ignore[attr-defined]
                where = address
        except _TAR_ERRORS as error:
            flaws.append(Flaw(BROKEN, f"{where} ({_reason(error)})"))


class _Raw:
    """A stream, with its first bytes read already; counts what it gives."""

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
    """The bytes of a tar, compressed or not; ends with an error where a tar was made to be endless.

    A header may say that a file has exabytes: to skip them, tarfile reads at the end of the stream
    as often as that takes. And a megabyte may unfold to gigabytes.
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
    """A class of headers that notes the damaged ones, a flaw for each place, and a lost end."""
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
    """Open a tar by what `webdataset` knows, else by what fsspec knows."""
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
    """Tell whether to open an address is to run a command that stands in it.

    Older versions of `webdataset` put other addresses between quotation marks into a shell's line.
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

