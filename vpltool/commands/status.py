"""`status`: what is in a workspace, from what, and what is stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vpltool.datasets.tags import some
from vpltool.formats import Workspace
from vpltool.settings import Settings, setting
from vpltool.stage import Stage
from vpltool.state import read_state, settings_shown


@dataclass(frozen=True, kw_only=True)
class StatusSettings(Settings):
    """Settings of `status`."""

    stale: bool = setting(False, "Only what is not up to date.", off="-", record="never")


STAGE = Stage(order=93, panel="4. Scores and pictures", reads=("workspace",), writes=(),
              settings=StatusSettings)


def run(workspace: Workspace, settings: StatusSettings) -> list[dict[str, Any]]:
    """List what is in the workspace, what it was made from, and what is stale and why.

    Stale is what was made from photos, tags, classes or files that have changed since. What
    several processes are making is listed shard by shard, each with its own line.

    Example: vpltool status

    Next: vpltool update

    Args:
        workspace: what is looked through.
        settings: whether to list only what is stale.

    Returns:
        for each artifact `name`, `made_by`, `settings`, `sources`, `stale` (reasons), `failed`
        (ids of photos) and `line`, which makes it again; each behind those that it was made from.
        Where several processes are making it, `shards` has the same of each that is not complete.
    """
    state = read_state(workspace)
    listed = []
    for artifact in state.in_order:
        stale = state.stale(artifact)
        if stale or not settings.stale:
            listed.append({
                "name": artifact.name, "made_by": artifact.header.command,
                "settings": settings_shown(artifact.header),
                "sources": sorted(set(artifact.header.sources.values())), "stale": stale,
                "failed": artifact.failed, "line": artifact.line(),
                "shards": [asdict(shard) for shard in state.unfinished_shards(artifact)]})
    return listed


def show(result: list[dict[str, Any]], values: Mapping[str, Any]) -> str:
    """Spell the list: a line an artifact; below a stale one, why and what makes it again."""
    if not result:
        return "everything is up to date" if values.get("stale") else "nothing has been made yet"
    width = max(len(entry["name"]) for entry in result)
    lines = []
    for entry in result:
        from_what = f"  from {', '.join(entry['sources'])}" if entry["sources"] else ""
        mark = "stale" if entry["stale"] else "ok"
        lines.append(f"{mark:5}  {entry['name']:{width}}  {entry['made_by']}{from_what}")
        if entry["failed"]:
            lines.append(f"       without {len(entry['failed'])} photos, which failed: "
                         f"{some(entry['failed'])}")
        if entry["stale"]:
            lines.append(f"       {'; '.join(entry['stale'])}")
            for shard in entry["shards"]:
                lines.append(f"       shard {shard['shard']}: {shard['missing']} to be done")
                lines.append(f"       {shard['line']}")
            if not entry["shards"]:
                lines.append(f"       {entry['line']}")
    stale = sum(bool(entry["stale"]) for entry in result)
    if stale:
        lines.append(f"{stale} of {len(result)} are stale; the command update makes them again")
    return "\n".join(lines)
