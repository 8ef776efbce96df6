"""Advice on the next command: the first step that is not done, and changes since `prepare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from vpltool import console
from vpltool.engine.features import BEST_FIRST
from vpltool.errors import VplError, counted, part_of
from vpltool.formats import Workspace, open_workspace
from vpltool.formats.changes import last_call
from vpltool.formats.kinds import result_name, results_of
from vpltool.formats.manifest import MANIFEST
from vpltool.formats.started import read_started
from vpltool.methods import find_methods
from vpltool.names import short_path
from vpltool.settings import Values, described
from vpltool.shell import command_line, program
from vpltool.stages.prepare import changes_since
from vpltool.state import Artifact, State, read_state

_WORDLESS = (("features", "features", "extract"), ("prototypes", "prototypes", "tag-prototypes"))
"""The beginning of the pipeline with an encoder in place of a CLIP."""

_PIPELINE = (("prototypes", "text prototypes", "text-prototypes"),
             ("features", "features", "extract"), ("cams", "CAMs", "cam"),
             ("masks", "masks", "crf"), ("decoder", "a segmenter", "train-decoder"),
             ("predictions", "predictions", "predict"))
"""Kind of file, its name for people, and the stage that makes it."""


class Step(NamedTuple):
    """A step to take: why, and its command line."""

    why: str
    line: str


def next_step(workspace: Workspace, state: State) -> Step:
    """Find the next step: an unfinished recipe, a stale result, a missing one, or looking at it."""
    photos = workspace.photos()
    if gone := len(workspace.missing(photos)):
        return _step(workspace, part_of(gone, len(photos), "photos", "is", "are")
                     + " not where `prepare` found them; this says how to repair it", "doctor")
    started = read_started(workspace.path)
    if started and not started.done:
        return Step(f"the recipe {started.name} is not finished",
                    shlex.join([*program(workspace.path), *started.words]))
    stale = sum(bool(state.stale(artifact)) for artifact in state.in_order)
    if stale:
        return _step(workspace, part_of(stale, len(state.artifacts), "results", "is", "are")
                     + " stale or not finished", "update")
    there = _kinds(workspace, state)
    if not any(photo.tags for photo in photos) and (
            found := _tagging(workspace, state)):
        return found
    last = ""
    for kind, noun, stage in (*_WORDLESS, *_PIPELINE[2:]) if workspace.encoder else _PIPELINE:
        if kind not in there:
            verb = "exists" if last.startswith("a ") else "exist"
            before = f"{last} {verb}, but " if last else ""
            return _step(workspace, f"{before}no {noun.removeprefix('a ')}", stage,
                         **_values(workspace, state, stage))
        last = noun
    return _looking(workspace, state)


def _tagging(workspace: Workspace, state: State) -> Step | None:
    """Return the step that gives photos tags; None if text prototypes come first as usual."""
    why = "no photo has a tag"
    if not workspace.has_words:
        return _step(workspace, why, "prepare", method="folder", images="PHOTOS",
                     labels="FILE.csv")
    if any(artifact.header.kind == "prototypes" for artifact in state.in_order):
        return _step(workspace, why, "tag")
    return _step(workspace, f"{why}, and no text prototypes find some",
                 "text-prototypes") if workspace.encoder else None


def _kinds(workspace: Workspace, state: State) -> set[str]:
    """Return the kinds that the pipeline has made, without those of a CLIP beside an encoder."""
    return {artifact.header.kind for artifact in state.in_order if not workspace.encoder or (
        artifact.header.command != "text-prototypes" and "encoder" not in artifact.header.options)}


def _values(workspace: Workspace, state: State, stage: str) -> Values:
    """Return the settings that a stage needs to find its inputs."""
    splits = _splits(workspace)
    split = {} if "train" in splits else {"split": splits[0]}
    if stage == "crf":
        return _named("what", _last(state, "cams")) | split
    if stage == "train-decoder":
        masks = _last(state, "masks")
        made_of = _source(state, _source(state, masks, "what"), "prototypes")
        rows = Path(made_of.name).stem if made_of else "vision"
        return (_named("masks", masks) | ({} if rows == "vision" else {"prototypes": rows}) | split
                | ({"method": "discriminant"} if workspace.encoder else {}))
    if stage == "predict":
        return {} if "val" in splits else {"images": ["PHOTOS"], "overlay": True}
    salient = {"method": "salient"} if stage == "cam" and workspace.encoder else {}
    return salient | split if stage in ("extract", "cam") else {}


def _looking(workspace: Workspace, state: State) -> Step:
    """Return the step after predictions: scores, if there are true masks; then the report."""
    found = _last(state, "predictions")
    scored = any(results_of(workspace.path, "scores"))
    if not scored and found and found.path.name in _splits(workspace) and any(
            photo.mask for photo in workspace.photos(found.path.name)):
        return _step(workspace, "predictions exist, but no scores", "eval",
                     what=result_name("predictions", found.path.parent.name), split=found.path.name)
    if not (workspace.path / "report/index.html").exists():
        return _step(workspace, "all steps are done; look at the photos in a browser", "report")
    return _step(workspace, "all steps are done; segment new photos", "predict",
                 images=["PHOTOS"], overlay=True)


def _step(workspace: Workspace, why: str, stage: str, **values: object) -> Step:
    return Step(why, command_line(stage, values, program(workspace.path)))


def _splits(workspace: Workspace) -> list[str]:
    return list(dict.fromkeys(split for photo in workspace.photos() for split in photo.splits)) or [
        "train"]


def _last(state: State, kind: str) -> Artifact | None:
    """Return the latest result of a kind; of masks, those with ignored pixels."""
    found = [artifact for artifact in state.in_order if artifact.header.kind == kind
             and not artifact.path.parent.name.endswith("-full")]
    return max(found, key=lambda artifact: (artifact.path / MANIFEST).stat().st_mtime_ns,
               default=None)


def _source(state: State, artifact: Artifact | None, role: str) -> Artifact | None:
    return state.artifacts.get(artifact.header.sources.get(role, "")) if artifact else None


def _named(setting: str, artifact: Artifact | None) -> Values:
    """Return a setting that names an input, unless a stage finds it without."""
    name = artifact.path.parent.name if artifact else ""
    return {} if name in ("", *BEST_FIRST) else {setting: name}


def advice(work: Path) -> str:
    """Format the state of a workspace and its next step, with the line to type.

    Raises a VplError if a file of it is damaged.
    """
    workspace = open_workspace(work)
    state = read_state(workspace)
    step = next_step(workspace, state)
    photos = workspace.photos()
    counts = [f"{sum(split in photo.splits for photo in photos)} in {split}"
              for split in _splits(workspace)]
    failed = {name for failure in state.failures(given=False) for name in failure.photos}
    failures = [counted(len(failed), "photo", "photos") + " failed and "
                + ("is" if len(failed) == 1 else "are")
                + f" left out; this says why: {command_line('doctor', {}, program(work))}"]
    return "\n".join([
        f"{workspace.name}: {counted(len(photos), 'photo', 'photos')} ({', '.join(counts)}), "
        f"{counted(len(workspace.classes), 'class', 'classes')}", *(failures if failed else ()),
        f"{step.why}:", "", f"    {step.line}", "",
        f"Results: {shlex.join([*program(work), 'status'])}. All commands: vpltool --help"])


def prepare_line(workspace: Workspace) -> str:
    """Return the last line of `prepare`, with only those settings that it does not remember.

    A path that is gone is replaced by a placeholder. `changes.jsonl` is data, so the line is
    printed and not run.
    """
    call = last_call(workspace.path)
    methods = find_methods("sources")
    if call.get("method") not in methods:
        return shlex.join([*program(workspace.path), "prepare", "--help"])
    values = {"method": call["method"]}
    for entry in described(methods[call["method"]].settings):
        value = call.get(entry.name)
        gone = (entry.type is Path and isinstance(value, str)
                and not (workspace.path / value).exists())
        if gone:
            values[entry.name] = entry.metavar
        elif entry.positional and isinstance(value, str):
            values[entry.name] = (short_path(workspace.path / value) if entry.type is Path
                                  else value)
    return command_line("prepare", values, program(workspace.path))


def warn_of_changes(workspace: Workspace) -> bool:
    """Warn if photos or the CSV of tags have changed since `prepare`; return whether they have."""
    try:
        # `prepare` has warned about odd files already.
        with console.heard_by(console.Silence()):
            changes = changes_since(workspace)
    except VplError as error:
        console.warn(f"photos and tags cannot be compared with the workspace: {error.message}; "
                     f"{command_line('doctor', {}, program(workspace.path))} says how to repair it")
        return False
    if changes:
        console.warn(f"photos or tags have changed since `prepare`: {'; '.join(changes)}; "
                     f"{prepare_line(workspace)} picks up the changes")
    return bool(changes)
