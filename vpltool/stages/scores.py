"""`vpltool scores`: many scores in one table."""

from __future__ import annotations

import json as spelling
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from vpltool.errors import VplError
from vpltool.formats import read_json
from vpltool.options import Json
from vpltool.stage import Stage

STAGE = Stage(order=94, panel="4. Scores and pictures", reads=("scores",), writes=())


def scores(
    ctx: typer.Context,
    rows: Annotated[list[str] | None, typer.Argument(
        help="Rows: 'TITLE=FILE' or 'TITLE=FILE,FILE,…', the mean of several; or plain files. "
             "Default: all in scores/.")] = None,
    markdown: Annotated[bool, typer.Option(
        "--markdown", help="Print a Markdown table.")] = False,
    json: Json = False,
) -> None:
    """Put scores side by side; mean and deviation of several.

    Example: vpltool scores 'text=scores/cams-text-train.json' 'ours=scores/a.json,scores/b.json'
    """
    if not rows:
        # `gap` writes there, too.
        rows = [str(path) for path in sorted((ctx.obj / "scores").glob("*.json"))
                if read_json(path, "vpltool eval").get("kind") == "scores"]
        if not rows:
            raise VplError(f"no scores in {ctx.obj / 'scores'}", "vpltool eval")
    table = [_row(ctx.obj, row) for row in rows]
    if json:
        print(spelling.dumps(table))
        return
    cells = [["", "split", "photos", "mIoU", "foreground", "accuracy"]]
    for row in table:
        cells.append([row["title"], row["split"], str(row["photos"]),
                      *(_spell(row[key]) for key in ("miou", "foreground", "accuracy"))])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for number, line in enumerate(cells):
        padded = [cell.ljust(width) if column < 2 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(line, widths, strict=True))]
        print(f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip())
        if markdown and number == 0:
            print("|" + "|".join(f"{'-' * (width + 1)}{':' if column > 1 else '-'}"
                                 for column, width in enumerate(widths)) + "|")


def _row(work: Path, row: str) -> dict[str, Any]:
    title, equals, files = row.partition("=")
    names = (files if equals else row).split(",")
    found = [_read(work, name) for name in names]
    kinds = {(entry["split"], entry["photos"]) for entry in found}
    if len(kinds) > 1:
        raise VplError(f"`{row}` mixes scores of several splits or numbers of photos",
                       "one row for each")
    foreground = [[value for name, value in entry["iou"].items()
                   if name != "background" and value is not None] for entry in found]
    return {
        "title": title if equals else f"{found[0]['what']}", "split": found[0]["split"],
        "photos": found[0]["photos"], "miou": [entry["miou"] for entry in found],
        "foreground": [sum(values) / max(len(values), 1) for values in foreground],
        "accuracy": [entry["accuracy"] for entry in found]}


def _read(work: Path, name: str) -> dict[str, Any]:
    path = next((place for place in (Path(name), work / name) if place.exists()), Path(name))
    content = read_json(path, "vpltool eval writes scores")
    if content.get("kind") != "scores":
        raise VplError(f"{path} holds no scores", "vpltool eval writes them")
    return content


def _spell(values: list[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"
