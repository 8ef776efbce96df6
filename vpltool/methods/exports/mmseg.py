"""Write a data set for mmsegmentation: photos, label images, and its configuration.

ann_dir/SPLIT/NAME.png belongs to img_dir/SPLIT/NAME.jpg; a pixel's value is its class, 0 the
background, 255 ignored. mmsegmentation takes one suffix for all photos: where not all are JPEGs,
they become PNGs. dataset.py is a base for a configuration (`_base_`).

Example: vpltool export mmseg --split train

Source: mmsegmentation, "Prepare datasets" and BaseSegDataset
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats import voc_palette
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders

SUFFIX = "-mmseg"

_CONFIGURATION = "dataset.py"

Settings = _folders.LabellingSettings


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    suffixes = dict.fromkeys(sorted(files.splits), next(iter(files.suffixes.values())))
    for split in files.splits - {settings.split}:
        # Another split's photos may have another suffix.
        there = (files.path / "img_dir" / split).glob("*.*")
        suffixes[split] = next((file.suffix for file in there), suffixes[split])
    yield _CONFIGURATION, _configuration(files.classes, suffixes).encode()
    yield from files.label_images(f"ann_dir/{settings.split}")
    yield from files.photos(f"img_dir/{settings.split}")


export = _folders.exporter("mmseg", None, _members, splits="ann_dir")


def _configuration(classes: tuple[str, ...], suffixes: dict[str, str]) -> str:
    names, flat = ("background", *classes), voc_palette()
    palette = [flat[3 * index : 3 * index + 3] for index in range(len(names))]
    return (f"""dataset_type = 'BaseSegDataset'
data_root = '.'  # this folder, as seen from where mmsegmentation is started
metainfo = dict(
    classes={names!r},
    palette={palette!r})
""" + "".join(f"""{_variable(split)}_dataset = dict(
    type=dataset_type, data_root=data_root, metainfo=metainfo, reduce_zero_label=False,
    img_suffix={suffix!r}, seg_map_suffix='.png',
    data_prefix=dict(img_path={f'img_dir/{split}'!r}, seg_map_path={f'ann_dir/{split}'!r}))
""" for split, suffix in suffixes.items()))


def _variable(split: str) -> str:
    """Return a Python name made from that of a split."""
    name = re.sub(r"\W", "_", split)
    return name if name.isidentifier() else f"split_{name}"


def files(path: Path) -> list[Path]:
    """Return the label images; none if it is another layout."""
    return sorted((path / "ann_dir").rglob("*.png"))


def read(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Labelled]:
    """Read label images in mmsegmentation's layout: ann_dir/SPLIT/NAME.png.

    The classes in dataset.py, which is not run, name the values; without it, they are the
    workspace's labels.
    """
    configuration = path / _CONFIGURATION
    labels = (reading.labels_of_names(_classes(configuration), request, configuration)
              if configuration.exists() else {})
    return reading.read_label_images(((file.stem, file) for file in files(path)), labels, request)


def _classes(path: Path) -> list[str]:
    """Return the `classes=` of a configuration."""
    hint = "metainfo = dict(classes=('background', …)) in it names the classes"
    try:
        tree = ast.parse(reading.read_text(path))
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
