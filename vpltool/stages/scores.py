"""`scores`: many scores in one table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.formats import open_workspace, read_json
from vpltool.formats.storage import atomic_path
from vpltool.settings import Settings, setting
from vpltool.stage import Stage
from vpltool.stages._reports import format_table


@dataclass(frozen=True, kw_only=True)
class ScoresSettings(Settings):
    """Settings of `scores`."""

    rows: tuple[str, ...] = setting(
        (), "Rows: 'TITLE=FILE' or 'TITLE=FILE,FILE,…', the mean of several; or just files. "
            "Default: all in scores/. FILE may be a pattern: scores/vision-[0-9].json.",
        positional=True, metavar="ROW")
    markdown: bool = setting(False, "Print a Markdown table.", off="-")
    out: Path | None = setting(None, "Also write the table to this file.", metavar="FILE",
                               short="-o", record="never")


STAGE = Stage(order=94, panel="4. Scores and pictures", reads=("scores",), writes=(),
              settings=ScoresSettings, begins=True)


def run(path: Path, settings: ScoresSettings) -> list[dict[str, Any]]:
    """Compare scores in one table; several runs as mean and standard deviation.

    Example: vpltool scores 'text=scores/cams-text-train.json' 'ours=scores/a.json,scores/b.json'

    Args:
        path: the workspace folder; files are looked for there too.
        settings: which scores.

    Returns:
        title, split, photos and scores of each row; scores are lists, one of each file.

    Raises:
        VplError: a file is missing or holds no scores, there is no workspace to look into, or a
            row mixes splits.
    """
    rows: tuple[str, ...] | list[str] = settings.rows
    if not rows:
        # `gap` writes there, too.
        rows = [str(file) for file in sorted((path / "scores").glob("*.json"))
                if read_json(file, "`eval()`").get("kind") == "scores"]
        if not rows:
            open_workspace(path)
            raise VplError(f"no scores in {path / 'scores'}", "`eval()` writes them")
    table = [_row(path, row) for row in rows]
    if settings.out is not None:
        with atomic_path(settings.out) as temporary:
            temporary.write_text(show(table, {"markdown": settings.markdown}) + "\n", "utf-8")
    return table


def show(table: list[dict[str, Any]], values: Mapping[str, Any]) -> str:
    """Format the rows as a table; in Markdown where that is asked for."""
    cells = [["", "split", "photos", "mIoU", "foreground", "accuracy"]]
    cells += [[row["title"], row["split"], str(row["photos"]),
               *(_format(row[key]) for key in ("miou", "foreground", "accuracy"))] for row in table]
    return format_table(cells, markdown=values.get("markdown", False))


def _row(work: Path, row: str) -> dict[str, Any]:
    title, equals, files = row.partition("=")
    names = (files if equals else row).split(",")
    found = [_read(work, name) for pattern in names for name in _matching(work, pattern)]
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


def _matching(work: Path, pattern: str) -> list[str]:
    """Names that a pattern stands for; of what is not a pattern, itself."""
    if not any(letter in pattern for letter in "*?["):
        return [pattern]
    return sorted(str(path) for path in work.glob(pattern)) or [pattern]


def _read(work: Path, name: str) -> dict[str, Any]:
    path = next((path for path in (Path(name), work / name) if path.exists()), Path(name))
    content = read_json(path, "`eval()` writes scores")
    if content.get("kind") != "scores":
        raise VplError(f"{path} holds no scores", "`eval()` writes them")
    return content


def _format(values: list[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"
