"""`scores`: many scores in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.engine import reports
from vpltool.errors import VplError
from vpltool.formats import JsonObject, atomic, open_workspace, read_json
from vpltool.formats.kinds import folder_of, results_of
from vpltool.settings import Settings, Stage, setting
from vpltool.tables import format_mean, format_table


@dataclass(frozen=True, kw_only=True)
class ScoresSettings(Settings):
    """Settings of `scores`."""

    rows: tuple[str, ...] = setting(
        (), "Rows: 'TITLE=FILE' or 'TITLE=FILE,FILE,…', the mean of several; or just files. "
            "Default: all in scores/. FILE may be a pattern, scores/vision-[0-9].json, or a name "
            "in the table, cams-text.",
        positional=True, metavar="ROW")
    markdown: bool = setting(False, "Print a Markdown table.", off="-")
    out: Path | None = setting(None, "Also write the table to this file.", metavar="FILE",
                               short="-o", record="never", by_hand=True)


STAGE = Stage(order=94, panel="4. Scores and pictures", reads=("scores",), writes=(),
              settings=ScoresSettings, begins=True)


_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "masks": {"miou": "mIoU", "foreground": "foreground", "accuracy": "accuracy"},
    "tags": {"precision": "precision", "recall": "recall", "f1": "F1"}}
"""Title of a column by key of a score, for scores against masks and against tags."""


def run(path: Path, settings: ScoresSettings) -> list[JsonObject]:
    """Compare scores in one table; several runs as mean and standard deviation.

    Scores against tags, which have other columns, are in a second table.

    Example: vpltool scores 'text=scores/cams-text-train.json' 'ours=scores/a.json,scores/b.json'

    Returns:
        title, split, photos, what was compared with, and scores of each row; scores are lists, one
        of each file.

    Raises:
        VplError: a file is missing or holds no scores, there is no workspace to look into, or a
            row mixes splits.
    """
    rows: tuple[str, ...] | list[str] = settings.rows
    if not rows:
        # `gap` writes to the same folder.
        rows = [str(file) for file in results_of(path, "scores")
                if read_json(file, "`eval()`").get("kind") in ("scores", "agreement")]
        if not rows:
            open_workspace(path)
            raise VplError(f"no scores in {folder_of(path, 'scores')}",
                           "`eval(split='SPLIT')` writes those of photos with true masks; "
                           "`eval(split='SPLIT', against='tags')` those of others")
    table = [_row(path, one) for row in rows for one in [*map(str, _called(path, row))] or [row]]
    if changed := sorted({row["title"] for row in table if row["title"].endswith(reports.CHANGED)}):
        console.warn(f"{', '.join(changed)}: not the files that were scored; `eval()` scores those "
                     "that are there")
    write_table(settings.out, show(table, {"markdown": settings.markdown}))
    return table


def show(table: list[JsonObject], values: Mapping[str, object]) -> str:
    """Format a table each of scores against masks and against tags; in Markdown if requested."""
    tables = []
    for against, columns in _COLUMNS.items():
        rows = [row for row in table if row["against"] == against]
        cells = [["" if against == "masks" else f"against {against}", "split", "photos",
                  *columns.values()]]
        cells += [[row["title"], row["split"], str(row["photos"]),
                   *("-" if None in row[key] else
                     format_mean([100 * value for value in row[key]], 1) for key in columns)]
                  for row in rows]
        if rows:
            tables.append(format_table(cells, markdown=bool(values.get("markdown"))))
    return "\n\n".join(tables)


def _row(work: Path, row: str) -> JsonObject:
    title, equals, files = row.partition("=")
    names = (files if equals else row).split(",")
    found = [_read(work, name) for pattern in names
             for name in matching(work, pattern) or _called(work, pattern) or [Path(pattern)]]
    kinds = {(entry["against"], entry["split"], entry["photos"]) for entry in found}
    if len(kinds) > 1:
        raise VplError(f"`{row}` mixes scores of several splits or numbers of photos"
                       + (", and against masks and tags" if len({kind[0] for kind in kinds}) > 1
                          else ""), "one row for each")
    ((against, split, photos),) = kinds
    title = title if equals else str(found[0]["what"])
    changed = any(reports.changed_since(work, found))
    return {"title": title + reports.CHANGED * changed, "split": split, "photos": photos,
            "against": against, **{key: [entry[key] for entry in found]
                                   for key in _COLUMNS[against]}}


def _called(work: Path, name: str) -> list[Path]:
    """Return the scores of what has this name, in each split; empty if it is a file's path."""
    if any(path.is_file() for path in (Path(name), work / name)):
        return []
    return [path for path in results_of(work, "scores") if name.replace("/", "-") in (
        path.stem, read_json(path, "`eval()`").get("what"))]


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the sorted matches of a pattern in a folder; empty if it is not a pattern."""
    return sorted(folder.glob(pattern)) if any(sign in pattern for sign in "*?[") else []


def write_table(path: Path | None, table: str) -> None:
    """Write a table to a file, if one is given."""
    if path is not None:
        with atomic.atomic_path(path) as temporary:
            temporary.write_text(f"{table}\n", "utf-8")


def _read(work: Path, path: Path) -> JsonObject:
    """Read the scores of a file under the keys of `_COLUMNS`."""
    content = reports.read_scores(work / path if (work / path).exists() and not path.exists()
                                  else path)
    if content["kind"] == "agreement":
        return {**dict.fromkeys(_COLUMNS["tags"]), **content, **content["mean"], "against": "tags"}
    content = {**dict.fromkeys(_COLUMNS["masks"]), **content}
    return {**content, "against": "masks", "foreground": reports.foreground(content["iou"])}
