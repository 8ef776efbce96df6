"""`doctor`: checks torch, its device, the disk, and the files of the workspace."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vpltool import __version__, console
from vpltool.clip import encoders, models, weights
from vpltool.console import age, size
from vpltool.engine import checkpoints
from vpltool.engine.features import HEAD, head_path
from vpltool.engine.models import WORDS
from vpltool.errors import NotPermitted, VplError, counted, first_few, first_line, part_of
from vpltool.formats import Photo, Workspace, open_workspace, read_json
from vpltool.formats.atomic import AT_WORK, PART, newest
from vpltool.formats.changes import count_photos
from vpltool.formats.input_folders import faults_in
from vpltool.formats.kinds import folders_of, is_workspace, results_of
from vpltool.formats.manifest import MANIFEST, Manifest, first_header, folders_in
from vpltool.formats.storage import check_file, salvaged_header
from vpltool.names import short_path
from vpltool.next_step import prepare_line
from vpltool.settings import Settings, Stage, setting
from vpltool.shell import command_line, program, to_shell
from vpltool.state import Artifact, State, artifact_of, read_state

OK, NOTE, BROKEN = "ok", "note", "broken"
"""In order; worth knowing; a command will refuse, stop, or take what it should not."""

_SPARE, _SCARCE = 200_000_000, 5_000_000_000
"""Free bytes on a disk below which commands stop soon, and below which it is worth a look."""

_MOST = 20
"""Files that one line deletes by name; of more it deletes their folder's manifest."""


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Settings):
    """Settings of `doctor`."""

    machine: bool = setting(True, "Also check the machine: torch, its device, disk.",
                            off="--no-machine", record="never")


STAGE = Stage(order=6, panel="1. Begin", reads=(), writes=(),
              settings=DoctorSettings, begins=True)


def run(work: Path, settings: DoctorSettings) -> list[dict[str, str]]:
    """Check the machine and the workspace, and say how to repair what is broken.

    On the machine: torch, whether its GPUs compute, and the disk. In the workspace: the weights
    that it names, every file against its header and its folder, photos missing from results, files
    made with other settings, leftovers of killed commands. Nothing is changed. The exit code is 1
    if something is broken, that is, if a command would refuse it or stop.

    Example: vpltool doctor

    Next: vpltool status

    Returns:
        for each finding `part` (machine or workspace), `level` (ok, note, broken), `about`,
        `says`, and `repair`: the lines to type, or nothing.
    """
    found = [*_torch(), _disk(work)] if settings.machine else []
    if is_workspace(work):
        found += workspace_findings(work)
    return [asdict(finding) for finding in found]


@dataclass(frozen=True)
class Finding:
    """A finding about a part, machine or workspace, and the lines to type that repair it.

    `about` names the thing, such as `torch`, or a path relative to the workspace.
    """

    part: str
    level: str
    about: str
    says: str
    repair: str = ""


def _torch() -> Iterator[Finding]:
    """Check that torch can be imported, and that each GPU computes."""
    yield Finding("machine", OK, "vpltool", f"{__version__}, Python {platform.python_version()}")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("machine", BROKEN, "torch", f"cannot be imported: {first_line(error)}",
                      "pip install --force-reinstall torch")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("machine", OK, "torch", f"{torch.__version__}, {built}")
    if not torch.cuda.is_available():
        yield Finding("machine", OK, "GPU", "none that torch sees: everything runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            torch.ones(2, 2, device=name).matmul(torch.ones(2, 2, device=name)).sum().item()
            yield Finding("machine", OK, name, f"{torch.cuda.get_device_name(index)}, "
                                               f"{size(free)} of {size(total)} free")
        except RuntimeError as error:
            yield Finding("machine", BROKEN, name, f"does not compute: {first_line(error)}",
                          "pip install --force-reinstall torch")


def _disk(work: Path) -> Finding:
    """Check the free space where a workspace is or will be, and whether it can be written."""
    folder = next(path for path in (work.resolve(), *work.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    files = os.statvfs(folder).f_favail if hasattr(os, "statvfs") else 0
    about, place = f"disk of {short_path(work)}", shlex.quote(short_path(folder))
    if not os.access(folder, os.W_OK):
        return Finding("machine", BROKEN, about, f"{folder} cannot be written",
                       f"chmod -R u+w {place}")
    if free < _SCARCE:
        return Finding("machine", BROKEN if free < _SPARE else NOTE, about, f"{size(free)} free",
                       f"du -sh {place}/* | sort -h")
    # File systems without a table of files say 0.
    if 0 < files < 100_000:
        return Finding("machine", NOTE, about, f"room for only {files} more files",
                       f"df -i {place}")
    return Finding("machine", OK, about, f"{size(free)} free")


def workspace_findings(path: Path) -> list[Finding]:
    """Check a workspace without changing it."""
    try:
        workspace = open_workspace(path)
        photos = workspace.photos()
    except VplError as error:
        return [_refused("workspace.json" if "workspace.json" in error.message else "images.jsonl",
                         error, path)]
    folders = dict(folders_in(path, everywhere=True))
    files = _single_files(path, folders)
    known, count = {photo.id for photo in photos}, len(files)
    made: list[Finding] = []
    with console.progress("check", len(folders) + len(files)) as advance:
        for place, opened in folders.items():
            checked, faults = _folder(workspace, place, opened, known)
            count += checked
            made += faults
            advance()
        for file in files:
            made += _single(workspace, file)
            advance()
    # Each result comes after its inputs, so that repairs can run from the top.
    artifacts = {artifact.name: artifact for place in (*folders, *files)
                 if (artifact := _artifact(workspace, place))}
    positions = {artifact.name: number for number, artifact in enumerate(
        State(workspace, artifacts).in_order)}
    made.sort(key=lambda finding: positions.get(finding.about.removesuffix(HEAD), -1))
    state = read_state(workspace, passes_over=True)
    found = [*_photos(workspace, photos), *_weights(workspace), *made, *_failed(state),
             *_scores(workspace), *_temporary_files(path)]
    stale = [artifact.name for artifact in state.in_order if state.stale(artifact)]
    if stale and not any(finding.level == BROKEN for finding in found):
        found.append(Finding("workspace", NOTE, "results", f"{len(stale)} of "
                             f"{len(state.artifacts)} are stale: {first_few(stale)}",
                             command_line("update", {}, program(path))))
    return [Finding("workspace", OK, workspace.name,
                    f"{count_photos(len(photos))}, {count} files checked"), *found]


def _found(level: str, workspace: Workspace, path: Path, says: str, repair: str) -> Finding:
    """Make a finding about a file or folder, without its path in the message."""
    return Finding("workspace", level, path.relative_to(workspace.path).as_posix(),
                   says.removeprefix(str(path)).lstrip("/: "), repair)


def _refused(about: str, error: VplError, work: Path, repair: str = "") -> Finding:
    """Make a finding of an error that any command would raise, in the words of the shell."""
    says, hint = (to_shell(text, work=Path(short_path(work)))
                  for text in (error.message, error.hint))
    return Finding("workspace", BROKEN, about, says, repair or hint)


def _single_files(work: Path, folders: Iterable[Path]) -> list[Path]:
    """List the .safetensors of all photos: those of kinds, checkpoints, and heads of features."""
    heads = {head for folder in folders if (head := head_path(folder)).exists()}
    return sorted(heads.union(file for kind in folders_of(per_photo=False)
                              for file in work.glob(f"{kind}*/*.safetensors")
                              if not file.name.startswith(".") and file.parent not in folders))


def _photos(workspace: Workspace, photos: Sequence[Photo]) -> Iterator[Finding]:
    """Check that each photo is listed once, and that its file exists."""
    twice = [key for key, count in Counter(photo.id for photo in photos).items() if count > 1]
    if twice:
        yield Finding("workspace", BROKEN, "images.jsonl", f"{count_photos(len(twice))} listed "
                      f"twice: {first_few(twice)}", prepare_line(workspace))
    if gone := [photo.id for photo in workspace.missing(photos)]:
        root = short_path(workspace.path / workspace.root)
        yield Finding(
            "workspace", BROKEN, "photos", part_of(len(gone), len(photos), "photos", "is", "are")
            + f" not in {root}: {first_few(gone)}. If they have moved, give their new folder",
            prepare_line(workspace))


def _weights(workspace: Workspace) -> Iterator[Finding]:
    """Check that the encoder and the CLIP that the workspace names can be found."""
    options = {"encoder": "--encoder NAME-OR-FILE"} if workspace.encoder else {}
    if workspace.has_words:
        options["CLIP"] = ("--words CLIP" if workspace.encoder else "--pretrained FILE-OR-TAG")
    for what, option in options.items():
        try:
            if what == "CLIP":
                names = [*models.find_source(
                    workspace.model, workspace.pretrained, workspace.path).names.values()]
            else:
                names = [workspace.main_encoder]
                if file := encoders.find_encoder(workspace.encoder, (workspace.path,)).weights:
                    weights.recognise(file)
            yield Finding("workspace", OK, what, " ".join(dict.fromkeys(names)))
        except VplError as error:
            yield _refused(what, error, workspace.path, f"{prepare_line(workspace)} {option}")


def _folder(workspace: Workspace, path: Path, opened: Manifest | VplError, known: set[str]
            ) -> tuple[int, list[Finding]]:
    """Count the files of a folder, and check them and the folder."""
    try:
        if isinstance(opened, VplError):
            raise opened
        if not (path / MANIFEST).exists():
            raise VplError(f"holds {opened.header.kind}, but no {MANIFEST}: a command was killed "
                           "while it replaced them")
        artifact = artifact_of(workspace, path, opened)
    except VplError as error:
        return 0, [_unreadable(workspace, path, error)]
    if artifact is None or artifact.folder is None:
        return 0, []
    ids = artifact.folder.photo_ids()
    try:
        found = [*_bad_files(workspace, artifact), *_ids(workspace, artifact)]
    except NotPermitted as error:
        return len(ids), [_unreadable(workspace, path, error)]
    if _lacks_head(artifact):
        found.append(_found(BROKEN, workspace, path, f"{path.name}{HEAD} is not beside it",
                            artifact.line()))
    surplus = [key for key in ids if key not in known and key not in artifact.folder.packed]
    if surplus and path.name in {split for photo in workspace.photos() for split in photo.splits}:
        found.append(_found(NOTE, workspace, path, counted(len(surplus), "file", "files")
                            + " of photos that the workspace does not have: " + first_few(surplus),
                            removal([artifact.folder.path_of(key) for key in surplus])))
    return len(ids), found


def _lacks_head(artifact: Artifact) -> bool:
    """Return whether the head that `cam` needs is missing; a second encoder has none."""
    header = artifact.header
    second = "encoder" in header.options and header.call.get("encoder") != WORDS
    # Without tokens, neither `embed` nor an encoder that runs by its own code stores one.
    without = ("tokens" not in header.options.get("keep", ())
               and ("encoder" in header.model or header.command == "embed"))
    return (header.kind == "features" and not second and not without
            and not head_path(artifact.path).exists())


def _bad_files(workspace: Workspace, artifact: Artifact) -> Iterator[Finding]:
    """Find damaged files, and those of another configuration than their folder's."""
    assert artifact.folder is not None
    damaged, foreign = faults_in(artifact.folder)
    first = min(damaged, default=artifact.path)
    for files, wrong, why in (
            (sorted(damaged), "damaged", f" ({first.name}: {damaged.get(first)})"),
            (foreign, "of another configuration than the folder", "")):
        if files:
            yield _found(BROKEN, workspace, artifact.path, f"{_files_are(len(files))} {wrong}: "
                         f"{first_few(file.stem for file in files)}{why}",
                         f"{removal(files, artifact.path / MANIFEST)} && {artifact.line()}")


def _ids(workspace: Workspace, artifact: Artifact) -> Iterator[Finding]:
    """Find photos that a folder lacks, and a folder that was never marked complete."""
    state, folder = State(workspace, {}), artifact.folder
    assert folder is not None
    total, todo = state.to_do(artifact)
    # New photos, and those that failed until now, make a complete folder stale, not broken.
    lacks = [key for key in todo if not folder.holds(key) and key not in folder.failed
             and (not folder.complete or not folder.photos or key in folder.photos)]
    if lacks:
        lines = [shard.line for shard in state.unfinished_shards(artifact)]
        yield _found(BROKEN, workspace, artifact.path, f"lacks {len(lacks)} of "
                     f"{count_photos(total)}: {first_few(lacks)}",
                     "\n".join(lines) or artifact.line())
    if total and not todo and not (folder.complete and folder.shards == 1):
        yield _found(NOTE, workspace, artifact.path, "has all its photos, but is not marked "
                     "complete", artifact.line())


def _single(workspace: Workspace, path: Path) -> Iterator[Finding]:
    """Check a file of all photos: damage, or the checkpoint of a training that was stopped."""
    try:
        header = check_file(path)
    except VplError as error:
        yield _unreadable(workspace, path, error)
        return
    if header is None or not checkpoints.is_checkpoint(path):
        return
    target = next((other for other in path.parent.glob("*.safetensors")
                   if checkpoints.checkpoint_of(other) == path), None)
    if target is None:
        step, last = header.facts.get("checkpoint", "?"), header.options.get("iters", "?")
        yield _found(NOTE, workspace, path, f"a training stopped at step {step} of {last}; this "
                     "continues it", _line_of(workspace, path))
    else:
        yield _found(NOTE, workspace, path, f"was left behind; {target.name} is there",
                     removal([path]))


def _artifact(workspace: Workspace, path: Path) -> Artifact | None:
    """Return the artifact in a folder or file that may be damaged, if its header can be read."""
    header = first_header(path) if path.is_dir() else salvaged_header(path)
    with contextlib.suppress(VplError):
        return artifact_of(workspace, path, header) if header else None
    return None


def _line_of(workspace: Workspace, path: Path) -> str:
    artifact = _artifact(workspace, path)
    return artifact.line() if artifact else ""


def _unreadable(workspace: Workspace, path: Path, error: VplError) -> Finding:
    """Make a finding of a folder or file that is damaged, or that the user may not read."""
    return _found(BROKEN, workspace, path, error.message, error.hint if isinstance(
        error, NotPermitted) else _again(workspace, path))


def _again(workspace: Workspace, path: Path) -> str:
    """Return the line that recomputes a damaged folder or file, if its header can be read.

    It keeps intact files, and masks corrected by hand.
    """
    damaged = path / MANIFEST if path.is_dir() else path
    features = path.with_name(path.name.removesuffix(HEAD))
    made = features if (features / MANIFEST).exists() else path
    return " && ".join(filter(None, [removal([damaged]) if damaged.exists() else "",
                                     _line_of(workspace, made)]))


def _scores(workspace: Workspace) -> Iterator[Finding]:
    for file in results_of(workspace.path, "scores"):
        try:
            read_json(file, "")
        except VplError as error:
            yield _unreadable(workspace, file, error)


def _failed(state: State) -> Iterator[Finding]:
    """Find photos that failed: why, and the line that processes them once they are fixed."""
    for failure in state.failures():
        them = "it" if len(failure.photos) == 1 else "them"
        yield Finding("workspace", NOTE, "photos", f"{count_photos(len(failure.photos))} failed "
                      f"({failure.reason}): {first_few(failure.photos)}; fix {them} first",
                      failure.line)


def _temporary_files(work: Path) -> Iterator[Finding]:
    """Find temporary files and folders of killed commands."""
    now, old, young = time.time(), dict[Path, float](), 0
    for part in work.rglob(f"{PART}*"):
        # A temporary folder counts as one.
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
    """Format the line that deletes files; if they are many, the line deletes only the manifest.

    Without a manifest, the command that makes the folder checks each of its files.
    """
    found = sorted(files)
    if manifest is not None and len(found) > _MOST:
        found = [manifest]
    return shlex.join(["rm", *map(short_path, found)])


def _files_are(count: int) -> str:
    return counted(count, "file is", "files are")


def show(result: list[dict[str, str]], _values: Mapping[str, object]) -> str:
    """Format the findings, a line each, with the repairs below."""
    width = max((len(entry["about"]) for entry in result), default=0)
    lines: list[str] = []
    part = ""
    for entry in result:
        if entry["part"] != part:
            part = entry["part"]
            lines += ["", part] if lines else [part]
        mark = entry["level"].upper() if entry["level"] == BROKEN else entry["level"]
        lines.append(f"  {mark:6}  {entry['about']:{width}}  {entry['says']}")
        if entry["repair"]:
            lines += [f"          {line}" for line in entry["repair"].splitlines()]
    if part != "workspace":
        lines += ["", "workspace", "  none here"]
    return "\n".join(lines).lstrip("\n")


def judge(result: list[dict[str, str]]) -> None:
    """Turn broken findings into the exit code of the command.

    Raises:
        VplError: something is broken.
    """
    broken = [entry for entry in result if entry["level"] == BROKEN]
    noted = sum(entry["level"] not in (OK, BROKEN) for entry in result)
    if broken:
        more = f"; {counted(noted, 'note', 'notes')}" if noted else ""
        raise VplError(f"{counted(len(broken), 'problem', 'problems')} found: "
                       f"{', '.join(dict.fromkeys(entry['about'] for entry in broken))}{more}",
                       "the command below each one repairs it")
