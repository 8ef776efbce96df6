"""Tables of text, for a terminal and in Markdown; and means with their deviation in cells."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence


def format_table(cells: Sequence[Sequence[str]], *, markdown: bool = False, left: int = 2) -> str:
    """Format headings and rows as a table, with the first `left` columns left-aligned.

    Columns are padded, in Markdown, too, so that it can be read in a terminal.
    """
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [cell.ljust(width) if column < left else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        lines.append(f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip())
    if markdown:
        lines.insert(1, "|" + "|".join(f"{'-' * (width + 1)}{':' if column >= left else '-'}"
                                       for column, width in enumerate(widths)) + "|")
    return "\n".join(lines)


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]],
                   right: Collection[int] = ()) -> str:
    """Format a table in Markdown without padding, with the columns `right` right-aligned."""
    rules = ["---:" if column in right else "---" for column in range(len(heads))]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (heads, rules, *rows)]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in line) + "|"
                     for line in lines)


def format_mean(values: Sequence[float], digits: int) -> str:
    """Format the mean of values, with the standard deviation of several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
