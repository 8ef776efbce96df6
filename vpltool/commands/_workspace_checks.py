"""What `doctor` asks a workspace: every file against its header, missing ids, what was left."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.commands._findings import (
    BROKEN,
    NOTE,
    OK,
    Finding,
    files_are,
    in_workspace,
    named,
    refused,
    removal,
)
from vpltool.commands._leftovers import (
    line_of,
    remake,
    temporary_files,
    without_manifest,
)
from vpltool.commands._prepare_again import prepare_line
from vpltool.engine.checkpoints import checkpoint_of, is_checkpoint
from vpltool.engine.features import HEAD, head_path
from vpltool.engine.models import WORDS
from vpltool.errors import VplError, counted, part_of
from vpltool.failures import failures_of
from vpltool.formats import Photo, Workspace, open_workspace, read_json
from vpltool.formats.changes import count_photos
from vpltool.formats.checking import Faults, check_file, faults_in, salvaged_header
from vpltool.formats.deletion import first_header, orphaned_folders
from vpltool.formats.kinds import folders_of
from vpltool.formats.manifest import MANIFEST, header_of, manifest_of, photo_ids
from vpltool.formats.storage import short_path
from vpltool.shell import command_line, program
from vpltool.stages import find_stages
from vpltool.state import Artifact, State, read_artifact, read_state

_DAMAGE = (VplError, ValueError, LookupError, TypeError, AttributeError, OSError)
"""What reading a damaged JSON meets."""

_MADE_BY = {"prototypes/text.safetensors": "text-prototypes",
            "prototypes/vision.safetensors": "learn-prototypes"}
"""Single files of which not even a damaged header must tell who makes them."""


def workspace_findings(path: Path) -> list[Finding]:
    """Check a workspace; nothing is changed.

    Args:
        path: its folder.
    """
    try:
        workspace = open_workspace(path)
        photos = workspace.photos()
    except VplError as error:
        return [refused("workspace.json" if "workspace.json" in error.message else "images.jsonl",
                        error, path)]
    folders, files = _parts(path)
    orphans = orphaned_folders(path, folders)
    known, count = {photo.id for photo in photos}, len(files)
    found = [*_photos(workspace, photos), *_models(workspace)]
    made = list(without_manifest(workspace, orphans))
    with console.progress("check", len(folders) + len(files)) as advance:
        for folder in folders:
            checked, faults = _folder(workspace, folder, known)
            count += checked
            made += faults
            advance()
        for file in files:
            made += _single(workspace, file)
            advance()
    positions = _positions(workspace, [*folders, *files, *orphans])
    made.sort(key=lambda finding: positions.get(finding.about.removesuffix(HEAD), -1))
    # What is damaged is told by others.
    state = read_state(workspace, passes_over=True)
    found += [*made, *_failed(state), *_scores(path), *temporary_files(path)]
    if not any(finding.level == BROKEN for finding in found):
        found += _stale(state)
    return [in_workspace(OK, workspace.name,
                         f"{count_photos(len(photos))}, {count} files checked"), *found]


def _positions(workspace: Workspace, paths: Sequence[Path]) -> dict[str, int]:
    """Name to position of what was made, each after its sources: so repairs run from the top."""
    artifacts = {}
    for path in paths:
        header = first_header(path) if path.is_dir() else salvaged_header(path)
        name = path.relative_to(workspace.path).as_posix()
        if header is not None and header.command.split()[0] in find_stages():
            artifacts[name] = Artifact(name, path, workspace.path, header)
    return {artifact.name: position
            for position, artifact in enumerate(State(workspace, artifacts).in_order)}


def _parts(work: Path) -> tuple[list[Path], list[Path]]:
    """Folders with a manifest, and single .safetensors with a header; not of workspaces below."""
    folders, files = [], []
    for root, below, names in os.walk(work):
        folder = Path(root)
        if folder != work and "workspace.json" in names:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        if MANIFEST in names:
            folders.append(folder)
        elif folder.parent == work and folder.name.startswith(folders_of(per_photo=False)):
            files += [folder / name for name in sorted(names) if name.endswith(".safetensors")
                      and not name.startswith(".")]
        files += [folder / name for name in sorted(names) if name.endswith(HEAD)
                  and not name.startswith(".")]
    return folders, files


def _photos(workspace: Workspace, photos: Sequence[Photo]) -> Iterator[Finding]:
    """Ids that come twice, and photos that are gone."""
    twice = [key for key, count in Counter(photo.id for photo in photos).items() if count > 1]
    if twice:
        yield in_workspace(BROKEN, "images.jsonl", f"{count_photos(len(twice))} listed twice: "
                     f"{named(twice)}", prepare_line(workspace))
    gone = [photo.id for photo in photos if not workspace.image_path(photo).is_file()]
    if gone:
        root = short_path(workspace.path / workspace.root)
        yield in_workspace(
            BROKEN, "photos", part_of(len(gone), len(photos), "photos", "is", "are")
            + f" not in {root}: {named(gone)}. If they have moved, give their new folder",
            prepare_line(workspace))


def _models(workspace: Workspace) -> Iterator[Finding]:
    """Whether encoder and CLIP are where the workspace says."""
    if workspace.encoder:
        yield _model(workspace, "encoder", _encoder_name, "--encoder NAME-OR-FILE")
    if workspace.has_words:
        yield _model(workspace, "CLIP", _clip_name, "--words CLIP" if workspace.encoder
                     else "--pretrained FILE-OR-TAG")


def _model(workspace: Workspace, what: str, name_of: Callable[[Workspace], str], options: str
           ) -> Finding:
    try:
        return in_workspace(OK, what, name_of(workspace))
    except VplError as error:
        finding = refused(what, error, workspace.path)
        return replace(finding, repair=f"{prepare_line(workspace)} {options}")


def _clip_name(workspace: Workspace) -> str:
    from vpltool.clip.models import find_source

    source = find_source(workspace.model, workspace.pretrained, workspace.path)
    return " ".join(dict.fromkeys(source.names.values()))


def _encoder_name(workspace: Workspace) -> str:
    from vpltool.clip.encoders import find_encoder
    from vpltool.clip.weights import recognise

    weights = find_encoder(workspace.encoder, (workspace.path,)).weights
    if weights:
        recognise(weights)
    return workspace.main_encoder


def _folder(workspace: Workspace, path: Path, known: set[str]) -> tuple[int, list[Finding]]:
    """Number of files of a folder, and what is wrong with it and with them."""
    name = path.relative_to(workspace.path).as_posix()
    try:
        artifact = read_artifact(workspace, path)
    except _DAMAGE as error:
        says = error.message if isinstance(error, VplError) else f"a damaged manifest ({error})"
        return 0, [in_workspace(BROKEN, name, says.removeprefix(str(path)).lstrip("/: "),
                          remake(workspace, path))]
    if artifact is None or artifact.folder is None:
        return 0, []
    faults = faults_in(artifact.folder)
    ids = photo_ids(path)
    found = [*_bad_files(artifact, faults), *_ids(State(workspace, {}), artifact)]
    if _lacks_head(artifact):
        found.append(in_workspace(BROKEN, name, f"{path.name}{HEAD} is not beside it",
                                  artifact.line()))
    surplus = [key for key in ids if key not in known and key not in artifact.folder.packed]
    if surplus and path.name in {split for photo in workspace.photos() for split in photo.splits}:
        found.append(in_workspace(
            NOTE, name, counted(len(surplus), "file", "files") + " of photos that the workspace "
            f"does not have: {named(surplus)}",
            removal([artifact.folder.path_of(key) for key in surplus])))
    return len(ids), found


def _lacks_head(artifact: Artifact) -> bool:
    """Whether the head that `cam` needs is gone; a second encoder has none."""
    header = artifact.header
    second = "encoder" in header.options and header.call.get("encoder") != WORDS
    # An encoder that runs by its own code has no head, and gives no tokens for one.
    without = "encoder" in header.model and "tokens" not in header.options.get("keep", ())
    return (header.kind == "features" and not second and not without
            and not head_path(artifact.path).exists())


def _bad_files(artifact: Artifact, faults: Faults) -> Iterator[Finding]:
    """Damaged files, and those of another configuration than their folder's."""
    if faults.damaged:
        first = min(faults.damaged)
        yield in_workspace(BROKEN, artifact.name, f"{files_are(len(faults.damaged))} damaged: "
                     f"{named(sorted(file.stem for file in faults.damaged))} "
                     f"({first.name}: {faults.damaged[first]})",
                     f"{removal(faults.damaged, artifact.path / MANIFEST)} && {artifact.line()}")
    if faults.foreign:
        yield in_workspace(BROKEN, artifact.name, f"{files_are(len(faults.foreign))} of another "
                     "configuration than the folder: "
                     f"{named(file.stem for file in faults.foreign)}",
                     f"{removal(faults.foreign, artifact.path / MANIFEST)} && {artifact.line()}")


def _ids(state: State, artifact: Artifact) -> Iterator[Finding]:
    """Photos that a folder lacks, and a mark that was never set."""
    total, todo = state.to_do(artifact)
    shards = state.unfinished_shards(artifact)
    folder = artifact.folder
    assert folder is not None
    # It never had photos that are new, and those that failed until now: it is out of date.
    lacks = [key for key in todo if not folder.holds(key) and key not in folder.failed
             and (not folder.complete or not folder.photos or key in folder.photos)]
    if lacks:
        yield in_workspace(BROKEN, artifact.name, f"lacks {len(lacks)} of {count_photos(total)}: "
                     f"{named(lacks)}",
                     "\n".join(shard.line for shard in shards) or artifact.line())
    complete = read_json(artifact.path / MANIFEST, "").get("complete")
    if total and not todo and (not complete or (artifact.path / ".shards").is_dir() and any(
            (artifact.path / ".shards").iterdir())):
        yield in_workspace(NOTE, artifact.name, "has all its photos, but is not marked complete",
                     artifact.line())


def _single(workspace: Workspace, path: Path) -> Iterator[Finding]:
    """A file of all photos: damaged, or the checkpoint of a training that was stopped."""
    name = path.relative_to(workspace.path).as_posix()
    try:
        header = check_file(path)
    except VplError as error:
        yield in_workspace(BROKEN, name, error.message.removeprefix(str(path)).lstrip(": "),
                     _single_again(workspace, path))
        return
    if header is None or not is_checkpoint(path):
        return
    target = next((other for other in path.parent.glob("*.safetensors")
                   if checkpoint_of(other) == path), None)
    if target is None:
        step, last = header.facts.get("checkpoint", "?"), header.options.get("iters", "?")
        yield in_workspace(
            NOTE, name, f"a training stopped at step {step} of {last}; this continues it",
            line_of(workspace, path, header))
    else:
        yield in_workspace(NOTE, name, f"was left behind; {target.name} is there",
                           removal([path]))


def _single_again(workspace: Workspace, path: Path) -> str:
    """The line that makes a damaged file of all photos again, as far as anything tells it."""
    features = path.with_name(path.name.removesuffix(HEAD))
    header = salvaged_header(path)
    name = path.relative_to(workspace.path).as_posix()
    if path.name.endswith(HEAD) and (features / MANIFEST).exists():
        path_of, header = features, header_of(manifest_of(features), features / MANIFEST)
    else:
        path_of = path
    if header is not None:
        return f"{removal([path])} && {line_of(workspace, path_of, header)}"
    if name in _MADE_BY:
        line = command_line(_MADE_BY[name], {}, program(workspace.path))
        return f"{removal([path])} && {line}"
    return removal([path])


def _scores(work: Path) -> Iterator[Finding]:
    for file in sorted((work / "scores").glob("*.json")):
        try:
            read_json(file, "")
        except VplError as error:
            yield in_workspace(BROKEN, f"scores/{file.name}",
                         error.message.removeprefix(str(file)).strip(), removal([file]))


def _failed(state: State) -> Iterator[Finding]:
    """Photos that cannot be used: why, and the line that tries them again once they are fixed."""
    for failure in failures_of(state):
        them = "it" if len(failure.photos) == 1 else "them"
        yield in_workspace(NOTE, "photos", f"{count_photos(len(failure.photos))} failed "
                           f"({failure.reason}): {named(failure.photos)}; fix {them} first",
                           failure.line)


def _stale(state: State) -> Iterator[Finding]:
    stale = [artifact.name for artifact in state.in_order if state.stale(artifact)]
    if stale:
        yield in_workspace(NOTE, "results", f"{len(stale)} of {len(state.artifacts)} are stale: "
                     f"{named(stale)}",
                     shlex.join([*program(state.workspace.path), "update"]))
