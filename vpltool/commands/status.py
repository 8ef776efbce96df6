"""`status`: lists results, their inputs, and which results are stale."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vpltool.console import age, size
from vpltool.errors import NotPermitted, counted, first_few
from vpltool.formats import JsonObject, Workspace
from vpltool.next_step import warn_of_changes
from vpltool.settings import Settings, Stage, setting
from vpltool.shell import command_line, program, to_shell
from vpltool.state import read_state, settings_shown


@dataclass(frozen=True, kw_only=True)
class StatusSettings(Settings):
    """Settings of `status`."""

    stale: bool = setting(False, "Show only stale results.", off="-", record="never")


STAGE = Stage(order=93, panel="4. Scores and pictures", reads=("workspace",), writes=(),
              settings=StatusSettings)


def run(workspace: Workspace, settings: StatusSettings) -> list[JsonObject]:
    """Show the results in the workspace, with inputs, age and size; what is stale, and why.

    Each result is listed below its last input. A result is stale if photos, tags, classes or files
    that it was made from have changed since. Work that several processes share is listed shard by
    shard, each with its own command. Files that are damaged, or that you may not read, are named,
    and the rest is listed.

    Example: vpltool status

    Next: vpltool update

    Returns:
        for each artifact, after those that it was made from, `name`, `made_by`, `settings`,
        `sources`, `stale` (reasons), `incomplete` (whether it is only not finished), `failed` (ids
        of photos), `failed_here` (those that no earlier step failed on), `line`, which recomputes
        it, `bytes` and `written` (seconds since 1970). Where several processes are making it,
        `shards` has `shard`, `missing` and `line` of each that is not complete. What is damaged
        comes last: `damaged` says what is wrong, and `line` is that of `doctor`, which repairs it.
        If you may not read it, `forbidden` is true, and `line` says who can change that.
    """
    warn_of_changes(workspace)
    state = read_state(workspace, passes_over=True)
    listed: list[JsonObject] = []
    for artifact in state.in_order:
        stale = state.stale(artifact)
        if stale or not settings.stale:
            count, written = _measured(artifact.path)
            listed.append({
                "name": artifact.name, "made_by": artifact.header.command,
                "settings": settings_shown(artifact.header),
                "sources": sorted(set(artifact.header.sources.values())), "stale": stale,
                "incomplete": state.incomplete(artifact), "failed": artifact.failed,
                "failed_here": state.failed_here(artifact), "line": artifact.line(),
                "bytes": count, "written": written,
                "shards": [asdict(shard) for shard in state.unfinished_shards(artifact)],
                "damaged": ""})
    for name, error in sorted(state.damaged.items()):
        count, written = _measured(workspace.path / name)
        forbidden = isinstance(error, NotPermitted)
        listed.append({
            "name": name, "made_by": "", "settings": "", "sources": [], "stale": [],
            "incomplete": False, "failed": [], "failed_here": [],
            "line": (error.hint if forbidden
                     else command_line("doctor", {}, program(workspace.path))),
            "bytes": count, "written": written, "shards": [], "damaged": error.message,
            **({"forbidden": True} if forbidden else {})})
    return listed


def _measured(path: Path) -> tuple[int, float]:
    """Return the bytes of a file or of a folder's files, and the last modification in s.

    Both are 0 if there is none.
    """
    files = (Path(root, name) for root, _, names in os.walk(path, followlinks=True)
             for name in names) if path.is_dir() else [path]
    found = []
    for file in files:
        # A link may lead nowhere, and another process may have renamed its temporary file.
        with contextlib.suppress(FileNotFoundError):
            found.append(file.stat())
    return (sum(entry.st_size for entry in found),
            round(max((entry.st_mtime for entry in found), default=0.0), 3))


def show(result: list[JsonObject], values: Mapping[str, object]) -> str:
    """Format the tree, and below it the stale results, with reasons and commands."""
    if not result:
        return "no result is stale" if values.get("stale") else "no results yet"
    # A failed photo is shown in the first result that lacks it.
    shown: set[str] = set()
    once: list[JsonObject] = []
    for entry in result:
        once.append({**entry, "failed": [key for key in entry["failed_here"] if key not in shown]})
        shown.update(entry["failed_here"])
    if values.get("stale"):
        return _format_list(once)
    listed = [entry for entry in once if entry["stale"] or entry["failed"] or entry["damaged"]]
    return _format_tree(result) + (f"\n\n{_format_list(listed)}" if listed else "")


def _format_tree(listed: Sequence[JsonObject]) -> str:
    below: dict[str, list[JsonObject]] = {}
    positions = {entry["name"]: position for position, entry in enumerate(listed)}
    for entry in listed:
        known = [source for source in entry["sources"] if source in positions]
        below.setdefault(max(known, key=positions.__getitem__, default=""), []).append(entry)
    rows = list(_rows(below, "", ""))
    width = max(len(name) for name, _, _ in rows)
    now = time.time()
    lines = []
    for name, parent, entry in rows:
        others = [source for source in entry["sources"] if source != parent]
        notes = [entry["made_by"] + (f", also from {', '.join(others)}" if others else "")
                 ] if entry["made_by"] else []
        notes += [f"without {counted(len(entry['failed']), 'photo', 'photos')}"
                  ] if entry["failed"] else []
        if (mark := _mark(entry)) != "ok":
            notes.append(mark.upper())
        written = age(max(now - entry["written"], 0)) if entry["written"] else ""
        lines.append(f"{name:{width}}  {size(entry['bytes']):>7}  "
                     f"{written:>8}  {'; '.join(notes)}")
    return "\n".join(lines)


def _rows(below: Mapping[str, Sequence[JsonObject]], parent: str, indent: str
          ) -> Iterator[tuple[str, str, JsonObject]]:
    """Yield branches and name, parent, and entry of each line below a parent."""
    entries = below.get(parent, ())
    for entry in entries:
        last = entry is entries[-1]
        branch = ("└─ " if last else "├─ ") if parent else ""
        yield indent + branch + entry["name"], parent, entry
        deeper = ("   " if last else "│  ") if parent else ""
        yield from _rows(below, entry["name"], indent + deeper)


def _mark(entry: JsonObject) -> str:
    if entry["damaged"]:
        return "forbidden" if "forbidden" in entry else "damaged"
    if entry["incomplete"]:
        return "incomplete"
    return "stale" if entry["stale"] else "ok"


def _format_list(result: list[JsonObject]) -> str:
    """Format a line per result, and below it failed photos and why the result is stale."""
    width = max(len(entry["name"]) for entry in result)
    lines = []
    for entry in result:
        if entry["damaged"]:
            lines += [f"{_mark(entry)}  {entry['name']}", f"       {to_shell(entry['damaged'])}",
                      f"       {entry['line']}"]
            continue
        from_what = f"  from {', '.join(entry['sources'])}" if entry["sources"] else ""
        lines.append(f"{_mark(entry):5}  {entry['name']:{width}}  {entry['made_by']}{from_what}")
        if entry["failed"]:
            lines.append(f"       without {counted(len(entry['failed']), 'photo', 'photos')}, "
                         f"which failed: {first_few(entry['failed'])}")
        if entry["stale"]:
            lines.append(f"       {'; '.join(entry['stale'])}")
            for shard in entry["shards"]:
                lines += [f"       shard {shard['shard']}: "
                          f"{counted(shard['missing'], 'photo', 'photos')} missing",
                          f"       {shard['line']}"]
            if not entry["shards"]:
                lines.append(f"       {entry['line']}")
    if any(entry["failed"] for entry in result):
        lines.append("to see why photos failed, run doctor")
    for mark, verb in (("incomplete", "finish"), ("stale", "recompute")):
        if count := sum(_mark(entry) == mark for entry in result):
            lines.append(f"{counted(count, 'result is', 'results are')} {mark}; to {verb} "
                         f"{'it' if count == 1 else 'them'}, run update")
    return "\n".join(lines)
