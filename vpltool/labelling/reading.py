"""What readers of labels share: broken files named with their line, photos of label images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool import json_text
from vpltool.errors import VplError
from vpltool.formats import IGNORE, read_drawn_labels
from vpltool.formats.labels import size_of_labels
from vpltool.labelling.request import Labelled, LabellingRequest

_AGAIN = "export it from the tool again"


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        VplError: it is missing, or not UTF-8.
    """
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VplError(f"{path} cannot be read ({error})", _AGAIN) from error


def parse_json(text: str, where: Path, first_line: int = 1) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        where: its file.
        first_line: where the text begins in it.

    Raises:
        VplError: it is damaged; the line is named.
    """
    try:
        return json_text.parse_json(text)
    except ValueError as error:
        line = first_line - 1 + getattr(error, "lineno", 1)
        raise VplError(f"{where}:{line}: not JSON ({getattr(error, 'msg', error)})", _AGAIN
                       ) from error


def parse_yaml(path: Path) -> Mapping[str, Any]:
    """Parse a YAML file that holds names and values.

    Raises:
        VplError: it is damaged, with the line where that is known, or PyYAML is not installed.
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
    """A loader of plain values without aliases: ten lines of them can stand for 2¹⁰⁰ values."""
    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not allowed")
            return super().compose_node(parent, index)

    return Plain


def labels_of_names(names: Any, request: LabellingRequest, where: Path) -> dict[int, int]:
    """Value to label, from names in the order of their values, or from value to name.

    Raises:
        VplError: a name is no class of the workspace, or these are no names.
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
    """Yield the photos of label images.

    Args:
        images: name of a photo, and its label image.
        labels: value to label; empty: values are the workspace's labels. 255 is unlabelled.
        request: knows photos and classes.

    Raises:
        VplError: an image is damaged, of another size, or has a value that is no class.
    """
    import numpy as np

    known = labels or dict(enumerate(range(len(request.classes) + 1)))
    table = np.zeros(256, np.uint8)
    table[list(known)] = list(known.values())
    table[IGNORE] = IGNORE
    for name, path in images:
        photo = request.photo(name, str(path))
        request.check_size(photo, size_of_labels(path), str(path))
        values = read_drawn_labels(path, other_palettes=True)
        odd = sorted(set(np.unique(values).tolist()) - known.keys() - {IGNORE})
        if odd:
            raise VplError(f"{path} has the value {odd[0]}, which is not a class",
                           "a pixel's value is the number of its class, 0 for the background, 255 "
                           "for unlabelled")
        yield Labelled(photo, table[values], str(path))


def below(path: Path, patterns: Sequence[str]) -> list[Path]:
    """The first pattern's files below a folder that has any, sorted."""
    for pattern in patterns:
        if found := sorted(path.glob(pattern)):
            return found
    return []
