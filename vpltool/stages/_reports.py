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


def format_table(cells: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Format rows as a table: the first two columns to the left, the others to the right.

    Args:
        cells: the heads of the columns, then a row each.
        markdown: with bars, and a rule below the heads.
    """
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [cell.ljust(width) if column < 2 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        lines.append(f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip())
    if markdown:
        lines.insert(1, "|" + "|".join(f"{'-' * (width + 1)}{':' if column > 1 else '-'}"
                                       for column, width in enumerate(widths)) + "|")
    return "\n".join(lines)
