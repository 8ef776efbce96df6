"""Checks of `doctor` on a workspace: files and headers, photos, weights, leftovers."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.clip import encoders, models, weights
from vpltool.console import age, size
from vpltool.engine import checkpoints
from vpltool.engine.features import HEAD, head_path
from vpltool.engine.models import WORDS
from vpltool.errors import VplError, counted, part_of
from vpltool.formats import Header, Photo, Workspace, open_workspace, read_json
from vpltool.formats.atomic import AT_WORK, PART, newest
from vpltool.formats.changes import count_photos
from vpltool.formats.input_folders import faults_in
from vpltool.formats.kinds import folders_of, results_of
from vpltool.formats.manifest import MANIFEST, first_header, manifest_of, orphaned_folders
from vpltool.formats.storage import check_file, salvaged_header
from vpltool.formats.whereabouts import short_path
from vpltool.next_step import prepare_line
from vpltool.shell import program, to_shell
from vpltool.stages import find_stages
from vpltool.state import Artifact, State, read_artifact, read_state

OK, NOTE, BROKEN = "ok", "note", "broken"
"""In order; worth knowing; a command will refuse, stop, or take what it should not."""

_MOST = 20
"""Files that a line to delete them names; of more the command itself tells which they are."""

_UNREADABLE = (VplError, ValueError, LookupError, TypeError, AttributeError, OSError)
"""What reading a damaged JSON meets."""


@dataclass(frozen=True)
class Finding:
    """What was found out about a part of the machine or the workspace.

    Args:
        level: `ok`, `note` or `broken`.
        about: the thing, such as `torch`, or a path relative to the workspace.
        repair: the line to type, or several.
    """

    part: str
    level: str
    about: str
    says: str
    repair: str = ""


def workspace_findings(path: Path) -> list[Finding]:
    """Check a workspace; nothing is changed."""
    try:
        workspace = open_workspace(path)
        photos = workspace.photos()
    except VplError as error:
        return [_refused("workspace.json" if "workspace.json" in error.message else "images.jsonl",
                         error, path)]
    folders, files = _parts(path)
    orphans = orphaned_folders(path, folders)
    known, count = {photo.id for photo in photos}, len(files)
    made = [_found(BROKEN, workspace, folder, f"holds {header.kind}, but no {MANIFEST}: a command "
                   "was killed while it replaced them", _again(workspace, folder))
            for folder, header in orphans.items()]
    with console.progress("check", len(folders) + len(files)) as advance:
        for folder in folders:
            checked, faults = _folder(workspace, folder, known)
            count += checked
            made += faults
            advance()
        for file in files:
            made += _single(workspace, file)
            advance()
    # Each after its sources: so repairs run from the top.
    headers = {path: _header_in(path) for path in (*folders, *files, *orphans)}
    artifacts = {artifact.name: artifact for path, header in headers.items()
                 if header and (artifact := _artifact(workspace, path, header))}
    positions = [artifact.name for artifact in State(workspace, artifacts).in_order]
    made.sort(key=lambda finding: positions.index(name) if (
        name := finding.about.removesuffix(HEAD)) in artifacts else -1)
    # What is damaged is told by others.
    state = read_state(workspace, passes_over=True)
    found = [*_photos(workspace, photos), *_weights(workspace), *made, *_failed(state),
             *_scores(workspace), *_temporary_files(path)]
    stale = [artifact.name for artifact in state.in_order if state.stale(artifact)]
    if stale and not any(finding.level == BROKEN for finding in found):
        found.append(Finding("workspace", NOTE, "results", f"{len(stale)} of "
                             f"{len(state.artifacts)} are stale: {_named(stale)}",
                             shlex.join([*program(path), "update"])))
    return [Finding("workspace", OK, workspace.name,
                    f"{count_photos(len(photos))}, {count} files checked"), *found]


def _found(level: str, workspace: Workspace, path: Path, says: str, repair: str) -> Finding:
    """A finding about a file or folder, whose path need not be said again."""
    return Finding("workspace", level, path.relative_to(workspace.path).as_posix(),
                   says.removeprefix(str(path)).lstrip("/: "), repair)


def _refused(about: str, error: VplError, work: Path, repair: str = "") -> Finding:
    """A finding of an error that any command would meet, in the words of the command line."""
    says, hint = (to_shell(text, work=Path(short_path(work)))
                  for text in (error.message, error.hint))
    return Finding("workspace", BROKEN, about, says, repair or hint)


def _parts(work: Path) -> tuple[list[Path], list[Path]]:
    """Folders with a manifest, and single .safetensors with a header; not of workspaces below."""
    folders, files = [], []
    for root, below, names in os.walk(work):
        folder = Path(root)
        if folder != work and "workspace.json" in names:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        single = MANIFEST not in names and folder.parent == work and folder.name.startswith(
            folders_of(per_photo=False))
        if MANIFEST in names:
            folders.append(folder)
        files += [folder / name for name in sorted(names) if not name.startswith(".")
                  and name.endswith(".safetensors" if single else HEAD)]
    return folders, files


def _photos(workspace: Workspace, photos: Sequence[Photo]) -> Iterator[Finding]:
    """Ids that come twice, and photos that are gone."""
    twice = [key for key, count in Counter(photo.id for photo in photos).items() if count > 1]
    if twice:
        yield Finding("workspace", BROKEN, "images.jsonl", f"{count_photos(len(twice))} listed "
                      f"twice: {_named(twice)}", prepare_line(workspace))
    gone = [photo.id for photo in photos if not workspace.image_path(photo).is_file()]
    if gone:
        root = short_path(workspace.path / workspace.root)
        yield Finding(
            "workspace", BROKEN, "photos", part_of(len(gone), len(photos), "photos", "is", "are")
            + f" not in {root}: {_named(gone)}. If they have moved, give their new folder",
            prepare_line(workspace))


def _weights(workspace: Workspace) -> Iterator[Finding]:
    """Whether encoder and CLIP are where the workspace says."""
    options = {"encoder": "--encoder NAME-OR-FILE"} if workspace.encoder else {}
    if workspace.has_words:
        options["CLIP"] = ("--words CLIP" if workspace.encoder else "--pretrained FILE-OR-TAG")
    for what, option in options.items():
        try:
            yield Finding("workspace", OK, what, _model_name(workspace, what))
        except VplError as error:
            yield _refused(what, error, workspace.path, f"{prepare_line(workspace)} {option}")


def _model_name(workspace: Workspace, what: str) -> str:
    if what == "CLIP":
        source = models.find_source(workspace.model, workspace.pretrained, workspace.path)
        return " ".join(dict.fromkeys(source.names.values()))
    if file := encoders.find_encoder(workspace.encoder, (workspace.path,)).weights:
        weights.recognise(file)
    return workspace.main_encoder


def _folder(workspace: Workspace, path: Path, known: set[str]) -> tuple[int, list[Finding]]:
    """Number of files of a folder, and what is wrong with it and with them."""
    try:
        artifact = read_artifact(workspace, path)
    except _UNREADABLE as error:
        says = error.message if isinstance(error, VplError) else f"a damaged manifest ({error})"
        return 0, [_found(BROKEN, workspace, path, says, _again(workspace, path))]
    if artifact is None or artifact.folder is None:
        return 0, []
    ids = artifact.folder.photo_ids()
    found = [*_bad_files(workspace, artifact), *_ids(workspace, artifact)]
    if _lacks_head(artifact):
        found.append(_found(BROKEN, workspace, path, f"{path.name}{HEAD} is not beside it",
                            artifact.line()))
    surplus = [key for key in ids if key not in known and key not in artifact.folder.packed]
    if surplus and path.name in {split for photo in workspace.photos() for split in photo.splits}:
        found.append(_found(NOTE, workspace, path, counted(len(surplus), "file", "files")
                            + " of photos that the workspace does not have: " + _named(surplus),
                            removal([artifact.folder.path_of(key) for key in surplus])))
    return len(ids), found


def _lacks_head(artifact: Artifact) -> bool:
    """Whether the head that `cam` needs is gone; a second encoder has none."""
    header = artifact.header
    second = "encoder" in header.options and header.call.get("encoder") != WORDS
    # Without tokens, neither `embed` nor an encoder that runs by its own code stores one.
    without = ("tokens" not in header.options.get("keep", ())
               and ("encoder" in header.model or header.command == "embed"))
    return (header.kind == "features" and not second and not without
            and not head_path(artifact.path).exists())


def _bad_files(workspace: Workspace, artifact: Artifact) -> Iterator[Finding]:
    """Damaged files, and those of another configuration than their folder's."""
    assert artifact.folder is not None
    damaged, foreign = faults_in(artifact.folder)
    first = min(damaged, default=artifact.path)
    for files, wrong, why in (
            (sorted(damaged), "damaged", f" ({first.name}: {damaged.get(first)})"),
            (foreign, "of another configuration than the folder", "")):
        if files:
            yield _found(BROKEN, workspace, artifact.path, f"{_files_are(len(files))} {wrong}: "
                         f"{_named(file.stem for file in files)}{why}",
                         f"{removal(files, artifact.path / MANIFEST)} && {artifact.line()}")


def _ids(workspace: Workspace, artifact: Artifact) -> Iterator[Finding]:
    """Photos that a folder lacks, and a mark that was never set."""
    state, folder = State(workspace, {}), artifact.folder
    assert folder is not None
    total, todo = state.to_do(artifact)
    # It never had photos that are new, and those that failed until now: it is out of date.
    lacks = [key for key in todo if not folder.holds(key) and key not in folder.failed
             and (not folder.complete or not folder.photos or key in folder.photos)]
    if lacks:
        lines = [shard.line for shard in state.unfinished_shards(artifact)]
        yield _found(BROKEN, workspace, artifact.path, f"lacks {len(lacks)} of "
                     f"{count_photos(total)}: {_named(lacks)}", "\n".join(lines) or artifact.line())
    complete = read_json(artifact.path / MANIFEST, "").get("complete")
    shards = artifact.path / ".shards"
    if total and not todo and (not complete or shards.is_dir() and any(shards.iterdir())):
        yield _found(NOTE, workspace, artifact.path, "has all its photos, but is not marked "
                     "complete", artifact.line())


def _single(workspace: Workspace, path: Path) -> Iterator[Finding]:
    """A file of all photos: damaged, or the checkpoint of a training that was stopped."""
    try:
        header = check_file(path)
    except VplError as error:
        yield _found(BROKEN, workspace, path, error.message, _again(workspace, path))
        return
    if header is None or not checkpoints.is_checkpoint(path):
        return
    target = next((other for other in path.parent.glob("*.safetensors")
                   if checkpoints.checkpoint_of(other) == path), None)
    if target is None:
        step, last = header.facts.get("checkpoint", "?"), header.options.get("iters", "?")
        yield _found(NOTE, workspace, path, f"a training stopped at step {step} of {last}; this "
                     "continues it", _line_of(workspace, path, header))
    else:
        yield _found(NOTE, workspace, path, f"was left behind; {target.name} is there",
                     removal([path]))


def _header_in(path: Path) -> Header | None:
    """The header of a folder, of which files may be damaged, or of a damaged file."""
    return first_header(path) if path.is_dir() else salvaged_header(path)


def _again(workspace: Workspace, path: Path) -> str:
    """The line that makes a damaged folder, or file of all photos, again, as far as a header tells.

    It goes on from the files that are whole, and keeps masks that a person has corrected.
    """
    damaged = path / MANIFEST if path.is_dir() else path
    made, header = path, _header_in(path)
    features = path.with_name(path.name.removesuffix(HEAD))
    if path.name.endswith(HEAD) and (features / MANIFEST).exists():
        made, header = features, manifest_of(features).header
    return " && ".join([*([removal([damaged])] if damaged.exists() else []),
                        *([_line_of(workspace, made, header)] if header else [])])


def _line_of(workspace: Workspace, path: Path, header: Header) -> str:
    """The command that recomputes the file of a header."""
    artifact = _artifact(workspace, path, header)
    return artifact.line() if artifact else shlex.join([*program(workspace.path), "status"])


def _artifact(workspace: Workspace, path: Path, header: Header) -> Artifact | None:
    """What a header names; None if no command made it."""
    name = path.relative_to(workspace.path).as_posix()
    return (Artifact(name, path, workspace.path, header)
            if header.command.split()[0] in find_stages() else None)


def _scores(workspace: Workspace) -> Iterator[Finding]:
    for file in results_of(workspace.path, "scores"):
        try:
            read_json(file, "")
        except VplError as error:
            yield _found(BROKEN, workspace, file, error.message, removal([file]))


def _failed(state: State) -> Iterator[Finding]:
    """Photos that cannot be used: why, and the line that tries them again once they are fixed."""
    for failure in state.failures():
        them = "it" if len(failure.photos) == 1 else "them"
        yield Finding("workspace", NOTE, "photos", f"{count_photos(len(failure.photos))} failed "
                      f"({failure.reason}): {_named(failure.photos)}; fix {them} first",
                      failure.line)


def _temporary_files(work: Path) -> Iterator[Finding]:
    """Temporary files and folders of killed commands."""
    now, old, young = time.time(), dict[Path, float](), 0
    for part in work.rglob(f"{PART}*"):
        # Those in a folder go with it.
        if any(above.name.startswith(PART) for above in part.relative_to(work).parents):
            continue
        with contextlib.suppress(FileNotFoundError):
            written = newest(part)
            if now - written > AT_WORK:
                old[part] = now - written
            else:
                young += 1
    if old:
        total = sum(file.stat().st_size for part in old for file in (part, *part.rglob("*"))
                    if file.is_file())
        lines = [["find", short_path(work), "-name", f"{PART}*", "-type", "f", "-mmin", "+60",
                  "-delete"]]
        if folders := sorted(part for part in old if part.is_dir()):
            lines.append(["rm", "-r", *map(short_path, folders)])
        yield Finding(
            "workspace", NOTE, f"{PART}*", f"{_files_are(len(old))} left by commands that were "
            f"killed, {size(total)}, the oldest {age(max(old.values()))} old",
            " && ".join(map(shlex.join, lines)))
    if young:
        yield Finding(
            "workspace", NOTE, f"{PART}*", f"{_files_are(young)} being written, or left by a "
            "command that was killed less than an hour ago; a later command deletes them")


def removal(files: Iterable[Path], manifest: Path | None = None) -> str:
    """Format the line that deletes files; where they are many, that of their folder's manifest.

    Without it, the command that makes the folder looks at each of its files.
    """
    found = sorted(files)
    if manifest is not None and len(found) > _MOST:
        found = [manifest]
    return shlex.join(["rm", *map(short_path, found)])


def _named(words: Iterable[str]) -> str:
    """List names, the first five of many."""
    found = list(words)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if found[5:] else "")


def _files_are(count: int) -> str:
    return counted(count, "file is", "files are")
