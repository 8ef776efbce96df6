"""`group-use`: how many groups photos use, and how far they overlap."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.core import group_maps
from vpltool.engine import photo_work
from vpltool.formats import InputFolder, JsonObject, Workspace, find_folder, kinds
from vpltool.settings import Settings, Stage, setting
from vpltool.stages.scores import matching, write_table
from vpltool.tables import format_mean, format_table

STAGES = ("first", "second")
"""Stages of grouping, the names of the tensors of group maps."""


@dataclass(frozen=True, kw_only=True)
class GroupUseSettings(Settings):
    """Settings of `group-use`."""

    rows: tuple[str, ...] = setting(
        (), "Rows: 'TITLE=NAME' or 'TITLE=NAME,NAME,…', the mean of several; or just names, or "
            "folders, of group maps. NAME may be a pattern: both-[0-9]. Default: the only ones of "
            "the split.",
        positional=True, metavar="ROW")
    split: str = options.split("val")
    limit: int = options.limit()
    markdown: bool = setting(False, "Print a Markdown table.", off="-")
    out: Path | None = setting(None, "Also write the table to this file.", metavar="FILE",
                               short="-o", record="never", by_hand=True)


STAGE = Stage(order=97, panel="4. Scores and pictures", reads=("group-maps",), writes=(),
              settings=GroupUseSettings)


def run(workspace: Workspace, settings: GroupUseSettings) -> list[JsonObject]:
    """Measure how many groups a photo uses, and how far their shares overlap (PGSeg).

    A group is used if it is the strongest somewhere: many used groups mean richness. The overlap of
    two groups is the sum of their smaller shares over that of the larger ones: little overlap means
    compactness. No true masks are read.

    Example: vpltool group-use both --split val

    Returns:
        title, photos, and of both stages the groups used and their overlap; lists, one of each
        folder.

    Raises:
        VplError: group maps are missing.
    """
    rows = settings.rows or ("",)
    table = [_row(workspace, settings, row) for row in rows]
    write_table(settings.out, show(table, {"markdown": settings.markdown}))
    return table


def _row(workspace: Workspace, settings: GroupUseSettings, row: str) -> JsonObject:
    title, equals, names = row.partition("=")
    home = kinds.folder_of(workspace.path, "group-maps")
    folders = [find_folder(workspace.path, ("group-maps",), name, settings.split,
                           f"`predict(split={settings.split!r})`, with a `decoder` of "
                           "`train_groups()`")
               for part in (names if equals else row).split(",")
               for name in [path.name for path in matching(home, part)] or [part]]
    ids = [photo.id for photo in workspace.photos(settings.split, settings.limit)]
    measured = [_measure(folder, ids) for folder in folders]
    found: JsonObject = {"title": title if equals else row or folders[0].path.parent.name,
                             "split": settings.split, "photos": measured[0].pop("photos")}
    return found | {key: [each[key] for each in measured] for key in measured[0]}


def _measure(folder: InputFolder, ids: list[str]) -> JsonObject:
    held = folder.available(ids)
    uses = []
    for key in photo_work.tracked(f"group-use {folder.name}", held, len(held)):
        maps = folder.read_tensors(key, *STAGES)
        uses.append([group_maps.group_use(maps[stage].float()) for stage in STAGES])
    found: JsonObject = {"photos": len(held)}
    for stage, each in zip(STAGES, zip(*uses, strict=True), strict=True):
        found[f"{stage}_used"] = statistics.fmean(used for used, _ in each)
        found[f"{stage}_overlap"] = statistics.fmean(overlap for _, overlap in each)
    return found


def show(table: list[JsonObject], values: Mapping[str, object]) -> str:
    """Format the rows as a table, in Markdown if requested."""
    keys = [f"{stage}_{what}" for stage in STAGES for what in ("used", "overlap")]
    cells = [["", "split", "photos", *(key.replace("_", " ") for key in keys)]]
    cells += [[row["title"], row["split"], str(row["photos"]),
               *(format_mean(row[key], 2) for key in keys)] for row in table]
    return format_table(cells, markdown=bool(values.get("markdown")))
