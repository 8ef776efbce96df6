"""`status`: lists results, what they were made from, and which are stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vpltool.commands._tree import Listed, format_tree, measured
from vpltool.datasets.tags import some
from vpltool.errors import counted
from vpltool.failures import failed_here
from vpltool.formats import Workspace
from vpltool.settings import Settings, setting
from vpltool.shell import command_line, program, to_shell
from vpltool.stage import Stage
from vpltool.state import read_state, settings_shown


@dataclass(frozen=True, kw_only=True)
class StatusSettings(Settings):
    """Settings of `status`."""

    stale: bool = setting(False, "Show only stale results.", off="-", record="never")


STAGE = Stage(order=93, panel="4. Scores and pictures", reads=("workspace",), writes=(),
              settings=StatusSettings)


def run(workspace: Workspace, settings: StatusSettings) -> list[Listed]:
    """Show the results in the workspace, with inputs, age and size; what is stale, and why.

    Each result is listed below its last input. A result is stale if photos, tags, classes or files
    that it was made from have changed since. Work that several processes share is listed shard by
    shard, each with its own command. Damaged files are named, and the rest is listed.

    Example: vpltool status

    Next: vpltool update

    Returns:
        for each artifact `name`, `made_by`, `settings`, `sources`, `stale` (reasons), `failed`
        (ids of photos), `failed_here` (those that no earlier step failed on), `line`, which
        recomputes it, `bytes` and `written` (seconds since 1970); each after those that it was
        made from. Where several processes are making it, `shards` has `shard`, `missing` and `line`
        of each that is not complete. What is damaged comes last: `damaged` says what is wrong, and
        `line` is that of `doctor`, which repairs it.
    """
    state = read_state(workspace, passes_over=True)
    listed: list[Listed] = []
    for artifact in state.in_order:
        stale = state.stale(artifact)
        if stale or not settings.stale:
            listed.append({
                "name": artifact.name, "made_by": artifact.header.command,
                "settings": settings_shown(artifact.header),
                "sources": sorted(set(artifact.header.sources.values())), "stale": stale,
                "failed": artifact.failed, "failed_here": failed_here(state, artifact),
                "line": artifact.line(), **measured(artifact.path),
                "shards": [asdict(shard) for shard in state.unfinished_shards(artifact)],
                "damaged": ""})
    for name, error in sorted(state.damaged.items()):
        listed.append({
            "name": name, "made_by": "", "settings": "", "sources": [], "stale": [], "failed": [],
            "failed_here": [],
            "line": command_line("doctor", {}, program(workspace.path)),
            **measured(workspace.path / name), "shards": [], "damaged": error.message})
    return listed


def show(result: list[Listed], values: Mapping[str, object]) -> str:
    """Format a tree, and below it what is stale: why, and the command that recomputes it."""
    if not result:
        return "everything is up to date" if values.get("stale") else "no results yet"
    if values.get("stale"):
        return _format_list(_failed_once(result))
    once = _failed_once(result)
    listed = [entry for entry in once if entry["stale"] or entry["failed"] or entry["damaged"]]
    return format_tree(result) + (f"\n\n{_format_list(listed)}" if listed else "")


def _failed_once(result: list[Listed]) -> list[Listed]:
    """The entries with each failed photo in the first of them only: the others pass it on."""
    seen: set[str] = set()
    told: list[Listed] = []
    for entry in result:
        told.append({**entry, "failed": [key for key in entry["failed_here"] if key not in seen]})
        seen.update(entry["failed_here"])
    return told


def _format_list(result: list[Listed]) -> str:
    """A line an artifact; below it which photos failed, and why it is stale."""
    width = max(len(entry["name"]) for entry in result)
    lines = []
    for entry in result:
        from_what = f"  from {', '.join(entry['sources'])}" if entry["sources"] else ""
        if entry["damaged"]:
            lines += [f"damaged  {entry['name']}", f"       {to_shell(entry['damaged'])}",
                      f"       {entry['line']}"]
            continue
        mark = "stale" if entry["stale"] else "ok"
        lines.append(f"{mark:5}  {entry['name']:{width}}  {entry['made_by']}{from_what}")
        if entry["failed"]:
            lines.append(f"       without {counted(len(entry['failed']), 'photo', 'photos')}, "
                         f"which failed: {some(entry['failed'])}")
        if entry["stale"]:
            lines.append(f"       {'; '.join(entry['stale'])}")
            for shard in entry["shards"]:
                lines.append(f"       shard {shard['shard']}: "
                             f"{counted(shard['missing'], 'photo', 'photos')} missing")
                lines.append(f"       {shard['line']}")
            if not entry["shards"]:
                lines.append(f"       {entry['line']}")
    if any(entry["failed"] for entry in result):
        lines.append("the command doctor says why photos failed")
    stale = sum(bool(entry["stale"]) for entry in result)
    if stale:
        lines.append(f"{stale} {'is' if stale == 1 else 'are'} stale; the command update makes "
                     f"{'it' if stale == 1 else 'them'} again")
    return "\n".join(lines)
