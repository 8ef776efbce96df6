"""Running a stage, for the command line, Python, recipes and `update`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.formats import Workspace, atomic, open_workspace, shards, workspace
from vpltool.formats.header import under_preset
from vpltool.methods import FOLDERS, KINDS, find_method, find_methods, warn_of_folders
from vpltool.options import PerPhoto
from vpltool.parallel.device import find_device, fixed_order, settle_precision
from vpltool.parallel.once import once, write_alone, writer
from vpltool.settings import Settings, described, make, names_of, renamed, values_of
from vpltool.stages import FoundStage, find_stages


def run_stage(
    found: FoundStage, path: Path, values: Mapping[str, object], *,
    given: Iterable[str] | None = None, preset: Mapping[str, object] | None = None,
) -> Any:
    """Run a stage in a workspace; return the result of its `run`: a path, several, or a report.

    Args:
        given: names of the settings that were given explicitly; default: all of `values`.
        preset: record for the headers, see `under_preset`.
    """
    if values.get("precision") == "auto" and "precision" in names_of(found.stage.settings):
        # Headers record the resolved value, so that results do not change unnoticed on another
        # machine.
        given = frozenset(values if given is None else given)
        values = {**values, "precision": _settled(values)}
    settings = stage_settings(found, values, given)
    listener = (contextlib.nullcontext() if prints_results(found)
                else console.heard_by(console.Silence()))
    # The same for all shards and ranks.
    work = json.dumps([found.name, _determining(settings) | {"shard": ""}], sort_keys=True)
    with (under_preset(preset or {}), listener, _once(found, path, settings), writer(work)):
        if found.stage.methods or found.name == "methods":
            warn_of_folders(os.environ.get(FOLDERS, ""))
        workspace.check_folder(path)
        _warn_of_array(found)
        if "workspace" in found.stage.writes:
            write_alone(path / "workspace.json")
        if found.stage.writes:
            atomic.remove_leftovers(path, below=1)
        where: Workspace | Path = path if found.stage.begins else open_workspace(path)
        # What learns from all photos: a sum in another order would be carried on by each step.
        learns = ("device" in names_of(found.stage.settings)
                  and not issubclass(found.stage.settings, PerPhoto))
        with fixed_order(find_device(str(values_of(settings)["device"])) if learns else None):
            return found.run(where, settings)


def _warn_of_array(found: FoundStage) -> None:
    """Warn if each task of a Slurm array does all of a stage, which takes no shards."""
    tasks = shards.tasks_of_array()
    if tasks > 1 and found.stage.writes and "shard" not in names_of(found.stage.settings):
        console.warn(f"this is one of {tasks} tasks of a Slurm array (SLURM_ARRAY_TASK_COUNT), and "
                     f"each of them does all of {found.name}: start it once, in a job of its own, "
                     "unless its options differ from task to task")


_HOW = ("overwrite", "update", "device", "batch_size", "workers", "precision")
"""Settings that do not change which work is meant."""


def _determining(settings: Settings) -> dict[str, str]:
    return {name: str(value) for name, value in values_of(settings).items() if name not in _HOW}


def _once(found: FoundStage, path: Path, settings: Settings
          ) -> contextlib.AbstractContextManager[None]:
    """Lock out other processes with the same work; ranks and shards have different work."""
    if not found.stage.writes:
        return contextlib.nullcontext()
    what = values_of(settings)
    shard = str(shards.shard_of_environment()) if what.get("shard") == "" else ""
    given = ", ".join(f"{name}={_literal(value)!r}"
                      for name, value in what.items() if name in settings.given)
    work = json.dumps([found.name, _determining(settings), shards.rank_of_process(), shard],
                      sort_keys=True)
    return once(path, work, f"`{found.name.replace('-', '_')}({given})`", shards="shard" in what)


def _literal(value: object) -> object:
    """Return a value whose `repr` is a literal: paths become strings."""
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _settled(values: Mapping[str, object]) -> str:
    """Resolve the precision `auto` on this machine; fp32 if machines share the work."""
    count = shards.find_shard(str(values.get("shard") or "")).count
    if max(count, shards.rank_of_process()[1]) > 1:
        console.note("precision: fp32, since the machines that share this work may differ; "
                     "`precision='bf16'` is faster where all of them have it")
        return "fp32"
    taken = settle_precision("auto", find_device(str(values.get("device") or "auto")))
    console.note(f"precision: {taken}")
    return taken


def prints_results(found: FoundStage) -> bool:
    """Return whether this process prints messages and results of a stage."""
    return not found.stage.together or shards.rank_of_process()[0] == 0


def find_stage(name: str) -> FoundStage:
    """Find a stage by the name of its command or function; raise a VplError if there is none."""
    stages = find_stages()
    wanted = name.replace("_", "-")
    if wanted not in stages:
        raise VplError(f"`{name}` is not a stage", near_name(wanted, stages))
    return stages[wanted]


def stage_settings(found: FoundStage, values: Mapping[str, object],
                   given: Iterable[str] | None = None) -> Settings:
    """Make the settings of a stage and of the chosen method.

    Raises:
        VplError: a value is not accepted, or a setting is missing, unknown, or of another method.
    """
    kind, stage = found.stage.methods, found.stage
    method = str(values.get("method") or KINDS[kind].default) if kind else ""
    if kind and not method:
        raise VplError("`method` is missing", f"one of: {', '.join(find_methods(kind))}")
    chosen = find_method(kind, method) if kind else None
    entries = (*described(stage.settings), *(described(chosen.settings) if chosen else ()))
    named = frozenset(renamed(dict.fromkeys(values if given is None else given), entries))
    values = renamed(values, entries)
    if chosen is None:
        return make(stage.settings, values, named)
    own, theirs = set(names_of(stage.settings)), set(names_of(chosen.settings))
    if own & theirs:
        raise VplError(f"{chosen.path}: {found.name} has a setting `{min(own & theirs)}` already",
                       "give the method's another name")
    for name in set(values) - own - theirs:
        if others := [other.name for other in find_methods(kind).values()
                      if other.importable and name in names_of(other.settings)]:
            raise VplError(f"`{name}={values[name]!r}` is a setting of `method={others[0]!r}`, "
                           f"not of `method={method!r}`",
                           f"`method={others[0]!r}`, or leave it out")
        raise VplError(f"`{name}` is not a setting", near_name(name, own | theirs))
    of_method = make(chosen.settings, {name: values[name] for name in values if name in theirs},
                     named & theirs)
    values = {name: value for name, value in values.items() if name not in theirs}
    return make(stage.settings, values | {"method": method}, named - theirs, of_method)
