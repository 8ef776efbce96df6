"""The state of a workspace: its artifacts, their inputs, staleness and failures."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vpltool import formats
from vpltool.datasets.words import read_classes
from vpltool.engine.masks import content_identity, identity_of_corrections
from vpltool.engine.models import WORDS, model_weights
from vpltool.engine.photos import available_again, photo_files_identity, photos_identity, tags_of
from vpltool.errors import NotPermitted, VplError, part_of
from vpltool.file_hashes import hashes_of
from vpltool.formats import Header, InputFolder, Photo, Workspace, rasters
from vpltool.formats.changes import INPUTS, explain_change
from vpltool.formats.corrections import corrections_of
from vpltool.formats.kinds import SECOND_FOLDER, folders_of, result_name, results_of
from vpltool.formats.manifest import PHOTO_FOLDERS, Manifest, folders_in
from vpltool.formats.outputs import replaced_photos
from vpltool.formats.shards import shard_of
from vpltool.formats.workspace import relative_to
from vpltool.methods import find_methods, own
from vpltool.names import short_path
from vpltool.provenance import check_header
from vpltool.settings import Values, described
from vpltool.shell import command_line, program, settings_with
from vpltool.stages import FoundStage, find_stages
from vpltool.stages.text_prototypes import class_words, vocabulary_identity


@dataclass(frozen=True)
class Artifact:
    """A result of a stage: a folder with one file per photo, or a single file.

    Args:
        name: path relative to the workspace.
        folder: the opened folder; None for a single file.
    """

    name: str
    path: Path
    work: Path
    header: Header
    folder: InputFolder | None = None
    names_rows: bool = False
    """Whether `line` spells out prototypes at their setting's default, since a workspace with an
    encoder has another default."""

    @property
    def stage(self) -> FoundStage:
        """The stage that made this artifact."""
        return find_stages()[self.header.command.split()[0]]

    @property
    def failed(self) -> list[str]:
        """Sorted ids of the photos it lacks because a stage failed on them."""
        if self.folder is None:
            return []
        return sorted(self.folder.left_out(self.folder.failed))

    def call(self) -> Values:
        """Return the settings that recompute it, with paths relative to the current folder."""
        entries = settings_with(self.stage, str(self.header.call.get("method", "")))
        call = {name: self._from_here(value) if name in entries and (
            entries[name].type is Path or self._is_path(value)) else value
            for name, value in self.header.call.items()}
        for role, source in self.header.sources.items():
            name = self._name_of(source, role)
            if role in entries and name not in ("", None if self.names_rows
                                                else entries[role].default):
                call[role] = [name] if entries[role].many else name
        return call

    def line(self, shard: str = "") -> str:
        """Return the shell command that recomputes it, or one shard of it, if it is stale."""
        more = {"shard": shard} if shard else {}
        return command_line(self.stage.name, self.call() | {"update": True} | more,
                            program(self.work))

    def _is_path(self, value: object) -> bool:
        """Return whether a value, which may also be a name, is a path from the workspace."""
        return isinstance(value, str) and "/" in value and (self.work / value).exists()

    def _from_here(self, path: Any) -> Any:
        """Return a path, or a list of them, relative to the current folder."""
        return ([short_path(self.work / one) for one in path] if isinstance(path, list)
                else short_path(self.work / path))

    def _name_of(self, source: str, role: str) -> str:
        """Return an input as users write it, by NAME if in its usual place; empty: default."""
        split = str(self.header.options.get("split", ""))
        folder, *rest = Path(source).parts
        if source == f"{SECOND_FOLDER if role == 'second' else 'features'}/{split}":
            return ""
        if folder in folders_of(per_photo=False) and len(rest) == 1:
            return Path(source).stem
        if folder in ("cams", "masks", "predictions") and len(rest) == 2 and rest[1] == split:
            return result_name(folder, rest[0]) if role == "what" else rest[0]
        return str(self._from_here(source))


@dataclass(frozen=True)
class Unfinished:
    """An incomplete shard: `I/N`, the number of missing photos, and the command that makes them."""

    shard: str
    missing: int
    line: str


@dataclass(frozen=True)
class Failure:
    """Photos on which a stage failed for the same reason.

    Args:
        reason: the reason, without a file name.
        photos: file names of the photos, or ids if the reason does not begin with a file name.
        line: the command that retries them.
    """

    reason: str
    photos: Sequence[str]
    line: str


@dataclass(frozen=True)
class State:
    """A workspace and its artifacts, as returned by `read_state`."""

    workspace: Workspace
    artifacts: Mapping[str, Artifact]
    damaged: Mapping[str, VplError] = field(default_factory=dict)
    """Error by name, of artifacts that cannot be read; see `read_state`."""
    _reasons: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def in_order(self) -> list[Artifact]:
        """Artifacts in topological order, each after its inputs."""
        done: dict[str, Artifact] = {}
        # Headers from elsewhere may contain cycles.
        seen = set[str]()

        def visit(name: str) -> None:
            artifact = self.artifacts.get(name)
            if artifact is None or name in seen:
                return
            seen.add(name)
            for source in artifact.header.sources.values():
                visit(source)
            done[name] = artifact

        for name in sorted(self.artifacts, key=lambda name: (
                self.artifacts[name].stage.stage.order, name)):
            visit(name)
        return list(done.values())

    def stale(self, artifact: Artifact) -> list[str]:
        """Return the reasons why an artifact is stale; empty if it is up to date."""
        if artifact.name not in self._reasons:
            # Set before its inputs are visited, so that a cycle ends.
            self._reasons[artifact.name] = []
            try:
                self._reasons[artifact.name] = [
                    *self._changed(artifact), *self._unfinished(artifact)]
            except VplError as error:
                # One of its inputs is damaged.
                self._reasons[artifact.name] = [error.message]
        return self._reasons[artifact.name]

    def incomplete(self, artifact: Artifact) -> bool:
        """Return whether an artifact is merely unfinished: none of its inputs has changed."""
        return (artifact.folder is not None and not artifact.folder.complete
                and self.stale(artifact) == self._unfinished(artifact))

    def _changed(self, artifact: Artifact) -> list[str]:
        header = artifact.header
        reasons = self._inputs_changed(header)
        for role, identity in header.inputs.items():
            source = header.sources.get("images" if role == "scene" else role)
            # A scene may be moved away once it is predicted, as photos may be.
            if source and role not in INPUTS and (
                    role != "scene" or (self.workspace.path / source).exists()):
                reasons[role] = self._source_changed(source, identity, artifact)
        return [*filter(None, (reasons[role] for role in sorted(reasons))),
                *self._model_changed(header)]

    def _inputs_changed(self, header: Header) -> dict[str, str]:
        """Return the reason by role, of inputs that are not files and have changed."""
        reasons: dict[str, str] = {}
        for role, known in INPUTS.items():
            # A decoder that was trained without corrected masks records none.
            counts = header.kind == "decoder" if role == "corrections" else role in header.inputs
            before = header.inputs.get(role, "")
            if counts and not reasons.keys() & {*known.follows} and (
                    before != self._identity_now(role, header)):
                reasons[role] = explain_change(self.workspace.path, role, before) or known.changed
        return reasons

    def _identity_now(self, role: str, header: Header) -> str:
        """Return the present identity of an input that is not a file; empty if it is gone."""
        work = self.workspace
        if role == "vocabulary":
            file = header.sources.get("words")
            words = class_words(work, synonyms=bool(header.call.get("synonyms", True)),
                                file=work.path / file if file else None)
            return vocabulary_identity(work, words)
        if role == "method-file":
            kind = find_stages()[header.command.split()[0]].stage.methods
            method = find_methods(kind).get(str(header.options.get("method", "")))
            # Elsewhere, VPLTOOL_METHODS may not be set; `update` says so.
            return own.identity_of(method.path) if method else header.inputs[role]
        try:
            return _IDENTITIES[role](work, header)
        except VplError:
            return ""

    def _model_changed(self, header: Header) -> list[str]:
        """Return a reason if the workspace's model or its weights differ from those in a header."""
        work, maker = self.workspace, header
        words = header.call.get("encoder") == WORDS
        for role in ("what", "decoder"):
            found = self.artifacts.get(maker.sources.get(role, ""))
            maker = found.header if found else maker
        if "segmenter" in maker.inputs or ("encoder" in maker.options and not words):
            # These do not depend on the workspace's own encoder: features of a second encoder,
            # predictions of a bundle or a student, and everything made from them.
            return []
        made_by = header.model.get("encoder") or header.model.get("name")
        if made_by is None:
            # Masks of another tool: no model of the workspace had a part in them.
            return []
        what, now = (("CLIP", work.model) if words or not work.encoder
                     else ("encoder", work.main_encoder))
        if made_by not in ({work.model} if words else {work.main_encoder, work.model}):
            return [f"the workspace's {what} is {now}, no longer {made_by}"]
        weights = self._weights["encoder" if "encoder" in header.model else "CLIP"]
        if weights and header.model.get("weights") != weights:
            return [f"the weights of {made_by} have changed"]
        return []

    @cached_property
    def _weights(self) -> Mapping[str, str]:
        """Hashes of the weight files of CLIP and of the encoder; empty if no file is configured."""
        return model_weights(self.workspace)

    def _source_changed(self, source: str, identity: str, artifact: Artifact) -> str:
        path, known = self.workspace.path / source, self.artifacts.get(source)
        if source in self.damaged:
            forbidden = isinstance(self.damaged[source], NotPermitted)
            return f"{source} {'may not be read' if forbidden else 'is damaged'}"
        if known is not None and self.stale(known):
            return f"{source} is not up to date"
        if known is not None and known.folder is not None:
            now = known.folder.identity
            if artifact.header.kind == "decoder" and known.header.kind == "masks":
                photos = _photos_of(self.workspace, artifact.header)
                now = content_identity(path, [photo.id for photo in photos
                                              if known.folder.path_of(photo.id).exists()])
        elif path.is_file():
            now = hashes_of(self.workspace.path, [source]).get(source, "")
        else:
            return "" if path.is_dir() else f"{source} is gone"
        return "" if now == identity else f"{source} has changed"

    def _unfinished(self, artifact: Artifact) -> list[str]:
        folder = artifact.folder
        if folder is not None and folder.replaced:
            return ["a command was stopped while it replaced the files"]
        total, todo = self.to_do(artifact)
        if todo:
            return [part_of(len(todo), total, "photos", "is", "are") + " to be done"]
        return ([] if folder is None or folder.complete
                else ["it is not marked complete: the command that makes it was stopped"])

    def unfinished_shards(self, artifact: Artifact) -> list[Unfinished]:
        """Return the remaining work per shard of an artifact that several processes are making.

        Empty for a single process, a complete artifact, or one that is entirely outdated.
        """
        if artifact.folder is None or artifact.folder.shards == 1 or self._changed(artifact):
            return []
        count = artifact.folder.shards
        missing = Counter(shard_of(key, count) for key in self.to_do(artifact)[1])
        return [Unfinished(f"{index}/{count}", missing[index], artifact.line(f"{index}/{count}"))
                for index in sorted(missing)]

    def to_do(self, artifact: Artifact) -> tuple[int, list[str]]:
        """Return the number of photos in an artifact's split, and the ids still to be made."""
        if artifact.folder is None:
            return 0, []
        split = str(artifact.header.options.get("split", ""))
        try:
            photos = self.workspace.photos(split)
        except VplError:
            return 0, []
        if artifact.path.name != split:
            return 0, []
        before = artifact.folder.per_photo_inputs
        tags = tags_of(self.workspace, photos) if before else {}
        replaced = replaced_photos(artifact.folder.photos, self.workspace.hashes_of(photos)
                                   ) if artifact.folder.photos else set()
        lost = artifact.folder.failed.keys() - replaced - available_again(artifact.folder, [
            found.folder for source in artifact.header.sources.values()
            if (found := self.artifacts.get(source)) and found.folder])
        todo = [photo.id for photo in photos if photo.id not in lost
                and (photo.id in replaced or not artifact.folder.holds(photo.id)
                     or (tags and before.get(photo.id) != tags[photo.id]))]
        return len(photos), todo

    def failed_here(self, artifact: Artifact) -> list[str]:
        """Return the photos on which an artifact's own stage failed, not those never received."""
        if artifact.folder is None or not artifact.failed:
            return []
        sources = [self.artifacts.get(source) for source in artifact.header.sources.values()]
        # Gaps of an input outside the workspace are reported here, since nothing else reports them.
        told = any(source and source.folder for source in sources)
        _, todo = self.to_do(artifact)
        return sorted({*artifact.failed} - {*todo} - (artifact.folder.waiting if told else set()))

    def failures(self, *, given: bool = True) -> list[Failure]:
        """Return the failures grouped by reason, each with the first stage that failed.

        Later stages only pass a failure on; `update` reruns them. A reason is reported once per
        photo, although `crf` writes two folders. Photos that `predict` was `given` count if asked
        for, and if their file or folder is still there.
        """
        known: set[tuple[str, str]] = set()
        found: dict[tuple[str, str], list[str]] = {}
        for artifact in self.in_order:
            images = artifact.header.images
            if images and not (given and any((self.workspace.path / one).exists()
                                             for one in images)):
                continue
            for key in self.failed_here(artifact):
                why = artifact.folder.failed[key] if artifact.folder else ""
                if (key, why) in known:
                    continue
                known.add((key, why))
                name, colon, reason = why.partition(": ")
                if not (colon and name.startswith(f"{Path(key).name}.")):
                    name, reason = key, why
                found.setdefault((reason, artifact.line()), []).append(name)
        return [Failure(reason, names, line) for (reason, line), names in found.items()]


def _classes_now(workspace: Workspace, header: Header) -> str:
    # Groups may take their class names from a file.
    named = header.sources.get("classes")
    return (replace(workspace, classes=read_classes(workspace.path / named).names)
            if named else workspace).classes_identity


_IDENTITIES: Mapping[str, Callable[[Workspace, Header], str]] = {
    "classes": _classes_now, "photos": photos_identity, "photo-files": photo_files_identity,
    "tags": lambda work, header: work.tags_identity(_split_of(header)),
    "captions": lambda work, header: work.captions_identity(_split_of(header)),
    "corrections": lambda work, header: identity_of_corrections(
        corrections_of(work, _photos_of(work, header)))}
"""Present identity of an input, by its role in a header; a VplError says that it is gone."""


def _split_of(header: Header) -> str:
    return str(header.options.get("split", "train"))


def _photos_of(workspace: Workspace, header: Header) -> list[Photo]:
    """Return the photos from which a file of a whole split would be made now."""
    return workspace.photos(_split_of(header), int(header.options.get("limit", 0)))


def read_state(workspace: Workspace, *, passes_over: bool = False) -> State:
    """Collect the artifacts of a workspace.

    Args:
        passes_over: whether to continue past damaged artifacts and list them in `damaged`.

    Raises:
        VplError: an artifact is damaged.
    """
    found: dict[str, Artifact] = {}
    damaged: dict[str, VplError] = {}
    for path, opened in _results(workspace.path):
        try:
            if isinstance(opened, VplError):
                raise opened
            if artifact := artifact_of(workspace, path, opened):
                found[artifact.name] = artifact
        except VplError as error:
            if not passes_over:
                raise
            damaged[relative_to(path, workspace.path)] = error
    return State(workspace, found, damaged)


def _results(work: Path) -> Iterator[tuple[Path, Manifest | Header | VplError]]:
    """Yield the results in their usual places, each opened, or what is wrong with it."""
    for path, folder in folders_in(work):
        top = path.relative_to(work).parts[0]
        # Beside the outputs of `embed` there may be features of a second encoder, another CLIP.
        if top in (*PHOTO_FOLDERS, SECOND_FOLDER) or (top.startswith("features-") and (
                isinstance(folder, VplError) or folder.header.command == "embed")):
            yield path, folder
    for kind in ("prototypes", "decoder"):
        for path in results_of(work, kind):
            try:
                yield path, formats.expect_header(path, kind)
            except VplError as error:
                yield path, error
    for path in results_of(work, "scenes"):
        # Any program may write GeoTIFFs; and rasterio may be missing here.
        with contextlib.suppress(VplError):
            if header := rasters.scene_header(path):
                yield path, header


def artifact_of(workspace: Workspace, path: Path, opened: Manifest | Header) -> Artifact | None:
    """Return the artifact of an opened folder, or of a file's header; None if no stage made it.

    Raises:
        VplError: the header is not that of its command.
    """
    folder = InputFolder(**vars(opened)) if isinstance(opened, Manifest) else None
    header = opened.header if isinstance(opened, Manifest) else opened
    name, stage = relative_to(path, workspace.path), find_stages().get(header.command.split()[0])
    if stage is None:
        return None
    check_header(header, stage, name)
    return Artifact(name, path, workspace.path, header,
                    folder and _of_photos_there(workspace, folder), bool(workspace.encoder))


def _of_photos_there(workspace: Workspace, folder: InputFolder) -> InputFolder:
    """Drop failures of photos that are no longer in the split."""
    split = str(folder.header.options.get("split", ""))
    if not folder.failed or folder.path.name != split:
        return folder
    try:
        there = {photo.id for photo in workspace.photos(split)}
    except VplError:
        # The artifact is of photos named by path, which belong to no split.
        return folder
    return replace(folder, failed={key: why for key, why in folder.failed.items()
                                   if key in there}, waiting=folder.waiting & there)


def settings_shown(header: Header) -> str:
    """Return the options of a header that differ from their stage's defaults, as short text."""
    stage = find_stages().get(header.command.split()[0])
    defaults = {entry.recorded_name: entry.default
                for entry in described(stage.stage.settings)} if stage else {}
    return ", ".join(f"{name} {value}" for name, value in header.call.items()
                     if defaults.get(name) != value)
