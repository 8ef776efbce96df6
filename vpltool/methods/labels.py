"""Labels from labelling tools: finding the reader of a file, its input and output.

A file of `exports/` whose format labelling tools write defines, beside `export`: `files(path)`, the
files that it would read, none if they are in another format; `read(path, request)`, which yields a
`Labelled` for each photo; and `NEEDS`, the packages that it imports. If regions may overlap,
`outlined(path, request)` yields them before `read` paints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vpltool import json_text
from vpltool.core.classes import label_type, paint
from vpltool.core.photos import photo_size
from vpltool.errors import VplError, check_package, near_name
from vpltool.formats import IGNORE, Photo, kinds, read_drawn_labels
from vpltool.formats.labels import size_of_labels
from vpltool.lazy import np, npt
from vpltool.methods import find_methods

_AGAIN = "export it from the tool again"

_BEGINNING = 4096
"""Bytes of a JSON file that show whose it is."""

BACKGROUND_WORDS = ("background", "_background_", "__background__")
"""Names of tools for pixels of no class."""


@dataclass(frozen=True)
class Labelled:
    """A photo of the workspace with labels from another program."""

    photo: Photo
    labels: npt.NDArray[np.uint8]  # (H, W) at the photo's size, 255 where unlabelled
    where: str  # file, and line or entry, of the labels


@dataclass(frozen=True)
class Region:
    """A region that a tool has outlined."""

    label: int
    inside: Callable[[], npt.NDArray[np.bool_]]  # makes (H, W); a VplError if it is damaged
    score: float = 1.0  # confidence of the tool, in [0, 1]; 1 if drawn by people


@dataclass(frozen=True)
class Outlined:
    """A photo of the workspace with regions from a tool, which may overlap."""

    photo: Photo
    size: tuple[int, int]  # (height, width) of the regions
    regions: Sequence[Region]  # in the order in which they are drawn
    where: str  # file, and line or entry, of the regions
    smallest_on_top: bool = False  # whether they are painted by size instead


def painting(outlined: Callable[[Path, LabellingRequest], Iterator[Outlined]]
             ) -> Callable[[Path, LabellingRequest], Iterator[Labelled]]:
    """Return the `read` of a format that paints regions onto background."""
    def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
        for found in outlined(path, request):
            regions = ((region.label, region.inside()) for region in found.regions)
            yield Labelled(found.photo, paint(
                found.size, regions, smallest_on_top=found.smallest_on_top), found.where)

    return read


@dataclass(frozen=True)
class LabellingRequest:
    """Photos and classes to which labels can belong."""

    root: Path  # folder of the photos
    classes: tuple[str, ...]  # class names in index order
    photos: Mapping[str, Photo]  # name to photo, under every name that a tool may give it
    gone: list[str] | None = None  # where names of unknown photos go; None: they are refused

    def known_photo(self, name: str, where: str) -> Photo | None:
        """Return the `photo` of a name; None if it is unknown, and is added to `gone`."""
        try:
            return self.photo(name, where)
        except VplError:
            if self.gone is None:
                raise
            self.gone.append(name)
            return None

    def photo(self, name: str, where: str) -> Photo:
        """Return the photo of a name, or raise a VplError.

        The name is its id or file, with folders before it or without its suffix.
        """
        parts = name.replace("\\", "/").split("/")
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            # Label Studio puts eight letters before the name of an uploaded file.
            for known in (tail, re.sub(r"^[0-9a-f]{8}-", "", tail)):
                for key in (known, re.sub(r"\.[^./]+$", "", known)):
                    if key in self.photos:
                        return self.photos[key]
        raise VplError(f"{where}: the photo {name} is not in the workspace",
                       near_name(parts[-1], {photo.id for photo in self.photos.values()}))

    def label(self, name: str, where: str) -> int:
        """Return the index of a class, 0 for `background`, or raise a VplError."""
        if name in self.classes:
            return self.classes.index(name) + 1
        if name.lower() in BACKGROUND_WORDS:
            return 0
        raise VplError(f"{where}: `{name}` is not a class of the workspace",
                       near_name(name, self.classes))

    def size(self, photo: Photo, where: str) -> tuple[int, int]:
        """Return (height, width) of a photo; raise a VplError if it cannot be read."""
        try:
            return photo_size(self.root / photo.image)
        except OSError as error:
            raise VplError(f"{where}: the photo {photo.id} cannot be read ({error})",
                           "put the photo back, or fix it") from error

    def check_size(self, photo: Photo, size: tuple[int, ...], where: str) -> None:
        """Raise a VplError if labels are not of their photo's size."""
        own = self.size(photo, where)
        if tuple(size) != own:
            raise VplError(f"{where}: {size[0]}×{size[1]} (height×width), its photo {photo.id} is "
                           f"{own[0]}×{own[1]}", "labels must have the size of their photo")


@dataclass(frozen=True)
class FirstRequest(LabellingRequest):
    """A request for a data set whose classes are not known yet: every name becomes one."""

    met: dict[str, int] = field(default_factory=dict)  # class name to label, in the file's order

    def label(self, name: str, where: str) -> int:
        """Return the label of a class, a new one for a new name; 0 for `background`."""
        if name.lower() in BACKGROUND_WORDS:
            return 0
        if name not in self.met and len(self.met) + 1 == IGNORE:
            self.met[kinds.RESERVED] = IGNORE
        return self.met.setdefault(name, len(self.met) + 1)


@dataclass(frozen=True)
class ProposalNames(FirstRequest):
    """A request for proposals: any word is accepted, and the caller compares sizes."""

    def check_size(self, photo: Photo, size: tuple[int, ...], where: str) -> None:
        """Accept any size."""

    def word(self, label: int) -> str:
        """Return the tool's word for a label from `label`."""
        return list(self.met)[label - 1] if label else BACKGROUND_WORDS[0]


def read_text(path: Path) -> str:
    """Read a text file; raise a VplError if it is missing, or not UTF-8."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VplError(f"{path} cannot be read ({error})", _AGAIN) from error


def parse_json(text: str, where: Path, first_line: int = 1) -> Any:
    """Parse JSON that begins in a line of its file; a VplError names the damaged line."""
    try:
        return json_text.parse_json(text)
    except ValueError as error:
        line = first_line - 1 + getattr(error, "lineno", 1)
        raise VplError(f"{where}:{line}: not JSON ({getattr(error, 'msg', error)})", _AGAIN
                       ) from error


def parse_yaml(path: Path) -> Mapping[str, object]:
    """Parse a YAML file of names and values.

    Raises a VplError if it is damaged, with the line if known, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise VplError("PyYAML is not installed", "pip install 'vpltool[labelling]'") from None
    try:
        content = yaml.load(read_text(path), _plain_loader(yaml))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, LookupError, AttributeError,
            OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise VplError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})", _AGAIN
                       ) from error
    if not isinstance(content, dict):
        raise VplError(f"{path} is not a list of names and values", _AGAIN)
    return content


def _plain_loader(yaml: Any) -> Any:
    """Return a loader of values without aliases: ten lines of them can stand for 2¹⁰⁰ values."""
    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: object, index: object) -> object:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

    return Plain


def labels_of_names(names: Any, request: LabellingRequest, where: Path) -> dict[int, int]:
    """Return value to label, from names in the order of their values, or from value to name.

    Raises a VplError if a name is no class of the workspace, or these are no names.
    """
    try:
        listed = names.items() if isinstance(names, dict) else enumerate(names or ())
        labels = {int(value): request.label(str(name), str(where)) for value, name in listed}
        if labels and not (min(labels) >= 0 and max(labels) <= IGNORE):
            raise ValueError("a value is not in 0 to 255")
        return labels
    except (TypeError, ValueError, OverflowError) as error:
        raise VplError(f"{where}: its class names cannot be read ({error})", _AGAIN) from error


def read_label_images(images: Iterable[tuple[str, Path]], labels: Mapping[int, int],
                      request: LabellingRequest) -> Iterator[Labelled]:
    """Yield the labels of label images, given by a photo's name and a path.

    Without a mapping of values to labels, values are the workspace's labels; 255 is unlabelled.
    Raises a VplError if an image is damaged, of another size, or has a value that is no class.
    """
    known = labels or dict(enumerate(range(len(request.classes) + 1)))
    table = np.zeros(1 + max(IGNORE, *known), label_type(len(request.classes)))
    table[list(known)] = list(known.values())
    table[IGNORE] = IGNORE
    for name, path in images:
        photo = request.known_photo(name, str(path))
        if photo is None:
            continue
        request.check_size(photo, size_of_labels(path), str(path))
        values = read_drawn_labels(path, other_palettes=True)
        odd = sorted(set(np.unique(values).tolist()) - known.keys() - {IGNORE})
        if odd:
            raise VplError(f"{path} has the value {odd[0]}, which is not a class",
                           "a pixel's value is the number of its class, 0 for the background, 255 "
                           "for unlabelled")
        yield Labelled(photo, table[values], str(path))


def below(path: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the sorted files below a folder of the first pattern that has any."""
    return next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])


def json_files(path: Path, patterns: Sequence[str], first: bytes) -> list[Path]:
    """Return the files `below` a folder; or the file, if it is JSON with this first letter."""
    if path.is_dir():
        return below(path, patterns)
    if path.suffix.lower() != ".json":
        return []
    with path.open("rb") as file:
        return [path] if file.read(64).strip()[:1] == first else []


def holds_shapes(path: Path) -> bool:
    """Return whether a file is LabelMe's JSON of a photo's shapes."""
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        return re.search(rb'"shapes"\s*:\s*\[', file.read(_BEGINNING)) is not None


def find_reader(path: Path) -> tuple[str, ModuleType] | None:
    """Return the name and the module of the format that a file or folder is in.

    None: it is a folder in no format of a tool, so at most of label images. Raises a VplError if it
    is missing, a file in no format, in several formats, or a package is not installed.
    """
    if not path.exists():
        raise VplError(f"{path} does not exist", "give a file or folder from a labelling tool")
    readers = {method.name: module for method in find_methods("exports").values()
               if method.importable and hasattr(module := method.load(), "read")}
    found = [name for name, reader in readers.items() if reader.files(path)]
    if not found and path.is_dir():
        return None
    if len(found) != 1:
        raise VplError(f"{path} may be {' or '.join(found)}" if found else
                       f"{path} is in no known format ({', '.join(readers)})",
                       "docs/labelling.md says what each format looks like")
    reader = readers[found[0]]
    for module in reader.NEEDS:
        check_package(module, f"{found[0]} needs {module}, which is not installed",
                      "pip install 'vpltool[labelling]'")
    return found[0], reader
