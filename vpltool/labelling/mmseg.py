"""Take label images in mmsegmentation's layout: ann_dir/SPLIT/NAME.png.

The classes in dataset.py say what the values mean; without it, they are the workspace's labels. Of
dataset.py nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError
from vpltool.labelling.reading import labels_of_names, read_label_images, read_text
from vpltool.labelling.request import Labelled, LabellingRequest

NEEDS: tuple[str, ...] = ()

_CONFIGURATION = "dataset.py"


def files(path: Path) -> list[Path]:
    """The label images; none if it is another layout."""
    return sorted((path / "ann_dir").rglob("*.png"))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the label images."""
    configuration = path / _CONFIGURATION
    labels = (labels_of_names(_classes(configuration), request, configuration)
              if configuration.exists() else {})
    return read_label_images(((file.stem, file) for file in files(path)), labels, request)


def _classes(path: Path) -> list[str]:
    """The `classes=` of a configuration.

    Raises:
        VplError: it is not Python, or names none.
    """
    hint = "metainfo = dict(classes=('background', …)) in it names the classes"
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise VplError(f"{path}:{line}: not Python ({getattr(error, 'msg', error)})", hint
                       ) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "classes":
            try:
                return list(ast.literal_eval(node.value))
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise VplError(f"{path}:{node.lineno}: `classes` is not a list of names", hint
                               ) from error
    raise VplError(f"{path} names no classes", hint)
