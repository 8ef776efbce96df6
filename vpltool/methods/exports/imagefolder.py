"""Write a data set for Hugging Face `datasets`: an imagefolder with masks.

metadata.jsonl in SPLIT/ names each photo, its mask and its tags; `datasets` gives the columns
`image` and `mask`. A pixel's value is its class, 0 the background, 255 unlabelled; classes.json
names the classes.

Example: vpltool export imagefolder --split train

Source: Hugging Face, "Create an image dataset", ImageFolder
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.fields import TEXT, check_fields
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders
from vpltool.names import leads_out

SUFFIX = "-imagefolder"

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")

Settings = _folders.LabellingSettings


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    split, names = settings.split, ("background", *files.classes)
    rows = []
    for photo, labels in files.labels(keeps_ignored=True):
        mask = f"masks/{files.names[photo.id]}.png"
        shown = [names[label] for label in _folders.classes_in(labels)]
        rows.append(json.dumps({
            "file_name": f"images/{files.name(photo)}", "mask_file_name": mask, "photo": photo.id,
            "classes": shown}, ensure_ascii=False))
        yield f"{split}/{mask}", _folders.grey_png(labels)
    yield f"{split}/metadata.jsonl", "".join(f"{row}\n" for row in rows).encode()
    yield "classes.json", json.dumps(names, ensure_ascii=False).encode()
    yield from files.photos(f"{split}/images")


export = _folders.exporter("imagefolder", _TAKEN, _members, splits=".")


def files(path: Path) -> list[Path]:
    """Return the lists of photos; none if it is another layout."""
    return reading.below(path, ("metadata.jsonl", "*/metadata.jsonl"))


def read(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Labelled]:
    """Read label images of an imagefolder of Hugging Face `datasets`: metadata.jsonl and masks.

    classes.json names the values; without it, they are the workspace's labels.
    """
    names = path / "classes.json"
    labels = (reading.labels_of_names(
        reading.parse_json(reading.read_text(names), names), request, names)
        if names.exists() else {})
    return reading.read_label_images(_images(files(path)), labels, request)


def _images(lists: list[Path]) -> Iterator[tuple[str, Path]]:
    for listed in lists:
        for number, line in enumerate(reading.read_text(listed).splitlines(), 1):
            row = reading.parse_json(line, listed, number)
            try:
                check_fields(row, {"mask_file_name": TEXT}, {"photo": TEXT, "file_name": TEXT})
                name, mask = row.get("photo") or row.get("file_name", ""), row["mask_file_name"]
                if not name or leads_out(mask):
                    raise ValueError("no `file_name`" if not name else f"{mask} leads out of it")
            except ValueError as error:
                raise VplError(f"{listed}:{number}: {error}",
                               "a line names `file_name` and `mask_file_name`") from error
            yield name, listed.parent / mask
