"""Reports: what a stage found out, which it returns and has written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Report(dict[str, Any]):
    """A report as its JSON file holds it, and what else its table says.

    Args:
        content: of the file.
        paths: the file, and what lies beside it, such as a picture.
        classes: names of all classes, those that the report leaves out too.
    """

    def __init__(self, content: Mapping[str, Any], *paths: Path, classes: Sequence[str] = ()
                 ) -> None:
        super().__init__(content)
        self.paths = paths
        self.classes = tuple(classes)
