"""Take label images of an imagefolder of Hugging Face `datasets`: metadata.jsonl and masks.

classes.json says what the values mean; without it, they are the workspace's labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.fields import TEXT, check_fields
from vpltool.labelling.reading import (
    below,
    labels_of_names,
    parse_json,
    read_label_images,
    read_text,
)
from vpltool.labelling.request import Labelled, LabellingRequest
from vpltool.names import leads_out

NEEDS: tuple[str, ...] = ()


def files(path: Path) -> list[Path]:
    """The lists of photos; none if it is another layout."""
    return below(path, ("metadata.jsonl", "*/metadata.jsonl"))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the label images."""
    names = path / "classes.json"
    labels = (labels_of_names(parse_json(read_text(names), names), request, names)
              if names.exists() else {})
    return read_label_images(_images(files(path)), labels, request)


def _images(lists: list[Path]) -> Iterator[tuple[str, Path]]:
    for listed in lists:
        for number, line in enumerate(read_text(listed).splitlines(), 1):
            row = parse_json(line, listed, number)
            try:
                check_fields(row, {"mask_file_name": TEXT}, {"photo": TEXT, "file_name": TEXT})
                name, mask = row.get("photo") or row.get("file_name", ""), row["mask_file_name"]
                if not name or leads_out(mask):
                    raise ValueError("no `file_name`" if not name else f"{mask} leads out of it")
            except ValueError as error:
                raise VplError(f"{listed}:{number}: {error}",
                               "a line names `file_name` and `mask_file_name`") from error
            yield name, listed.parent / mask
