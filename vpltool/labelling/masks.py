"""Take label images NAME.png: those of `export masks`, corrected in a paint program.

classes.txt says what the values mean; without it, they are the workspace's labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vpltool.labelling.reading import labels_of_names, read_label_images, read_text
from vpltool.labelling.request import Labelled, LabellingRequest

NEEDS: tuple[str, ...] = ()

_ELSE = ("data.yaml", "ann_dir", "metadata.jsonl", "*/metadata.jsonl", "annotations",
         "tasks.json", "annotations.xml")


def files(path: Path) -> list[Path]:
    """The label images below a folder; none if it holds something else."""
    if not path.is_dir() or any(any(path.glob(name)) for name in _ELSE):
        return []
    return sorted(file for file in path.rglob("*.png") if not file.name.startswith("."))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the label images."""
    names = path / "classes.txt"
    labels = (labels_of_names(read_text(names).split("\n")[:-1], request, names)
              if names.exists() else {})
    return read_label_images(
        ((file.relative_to(path).with_suffix("").as_posix(), file) for file in files(path)),
        labels, request)
