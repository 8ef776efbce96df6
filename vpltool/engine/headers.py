"""Headers of a stage's outputs, and detection of existing results."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import (
    Header,
    InputFolder,
    Workspace,
    changes,
    describe,
    expect_header,
    identity_of_file,
)
from vpltool.formats.header import is_same_model, is_stale
from vpltool.formats.input_folders import supervision_of
from vpltool.formats.manifest import call_of, check_replacing, manifest_of
from vpltool.formats.workspace import relative_to
from vpltool.methods import own
from vpltool.names import short_path, without_home
from vpltool.options import Replaces
from vpltool.parallel import once
from vpltool.settings import Settings, changed, recorded


def make_header(
    workspace: Workspace, kind: str, command: str, settings: Settings, *,
    inputs: Mapping[str, InputFolder | Path | str], model: Mapping[str, str],
    options: Mapping[str, object] | None = None, skip: Collection[str] = (),
) -> Header:
    """Make the header of an artifact from the settings of the stage.

    Args:
        inputs: input by role: a folder, a file, or an identity. If the role is the name of a
            setting, `update` can pass the input again.
        options: options that replace or extend those of the settings.
        skip: settings without effect.
    """
    identities, sources = {}, {}
    for role, item in inputs.items():
        if isinstance(item, str):
            identities[role] = item
            continue
        identities[role], path = ((item.identity, item.path) if isinstance(item, InputFolder)
                                  else (identity_of_file(item), item))
        sources[role] = relative_to(path, workspace.path)
        warn_if_outdated(workspace, path)
    if own_file := own.file_of(settings.of_method):
        identities["method-file"] = own.identity_of(own_file)
    call = {name: without_home(value, lambda path: relative_to(path, workspace.path))
            for name, value in changed(settings).items() if name not in sources}
    out = getattr(settings, "out", None)
    # `out` outside the workspace is not recorded: nothing tracks it, and bytes must not vary.
    if out is not None and not (inside := relative_to(out, workspace.path)).startswith(".."):
        call["out"] = inside
    return Header(kind=kind, command=command, model=dict(model), inputs=identities, call=call,
                  options={name: without_home(value) for name, value in
                           recorded(settings, skip).items()} | dict(options or {}), sources=sources,
                  supervision=supervision_of(inputs.values()))


def warn_if_outdated(workspace: Workspace, path: Path) -> None:
    """Warn if an input was made from what has changed since, once in a process for each state."""
    header = _header_of(path)
    # What lies elsewhere was made from files that lie elsewhere.
    if header is None or not path.resolve().is_relative_to(workspace.path.resolve()):
        return
    if reason := _outdated(workspace.path, header, set()):
        cure = call_of(header) if header.kind == "groups" else "`update()`"
        _warn_once(f"{short_path(path)} is not up to date: {reason}; {cure} recomputes it",
                   header.config_hash)


@functools.cache
def _warn_once(message: str, _state: str) -> None:
    console.warn(message)


def _header_of(path: Path) -> Header | None:
    """Return the header of an artifact; None if it is none, or damaged, which its reader tells."""
    try:
        return manifest_of(path).header if path.is_dir() else describe(path).header
    except (VplError, OSError):
        return None


def _outdated(work: Path, header: Header, seen: set[Path]) -> str:
    """Say which input of an artifact, or of what it was made from, has changed; empty: none.

    What is gone is no reason: features may be deleted when they have served.
    """
    for role, source in header.sources.items():
        path = work / source
        # Masks of a decoder are identified by their bytes, which would have to be read.
        if path in seen or (role == "masks" and header.kind == "decoder"):
            continue
        seen.add(path)
        found = _header_of(path)
        if found is None or role not in header.inputs:
            continue
        now = found.config_hash if path.is_dir() else identity_of_file(path)
        if now != header.inputs[role]:
            return f"{source} has changed"
        if reason := _outdated(work, found, seen):
            return reason
    return ""


def check_same_model(first: Mapping[str, str], second: Mapping[str, str], what: str) -> None:
    """Raise a VplError unless two artifacts come from the same model.

    `what` names the two: `features/train and prototypes/text`.
    """
    if not is_same_model(first, second):
        beside = "encoder" in {*first} ^ {*second}
        # The hash that distinguishes models of the same name.
        key = ("fingerprint" if first.get("fingerprint") != second.get("fingerprint")
               else "weights")
        names = [f"{model.get('name', '?')} ({model.get('pretrained', '?')}, "
                 f"{model.get(key, '?')[:6]}"
                 f"{', ' + model['normalise'] if 'normalise' in model else ''})"
                 for model in (first, second)]
        raise VplError(
            f"{what} come from different models: {names[0]} and {names[1]}",
            "the features of the CLIP are those of `extract(encoder='words')`: "
            "`features='features-second/SPLIT'`" if beside else
            "make one of them again with the workspace's model: "
            "`text_prototypes(overwrite=True)`, or `extract(overwrite=True)`")


def check_file(path: Path, header: Header, settings: Replaces, *, by_model_name: bool = False
               ) -> bool:
    """Return whether a single file already exists with the same configuration.

    Args:
        settings: with `overwrite`, return False, and the caller replaces it. With `update`, do so
            if the same command made it with other options or inputs.
        by_model_name: compare models without fingerprints, before the model is loaded.

    Raises:
        OtherSettings: it exists with other settings.
        VplError: another command is writing it.
    """
    once.write_alone(path)
    if settings.overwrite or not path.exists():
        check_replacing(path, same=not path.exists())
        return False
    found = expect_header(path, header.kind)
    if by_model_name:
        found = replace(found, model={key: value for key, value in found.model.items()
                                      if key in header.model or key == "normalise"})
    if found.config_hash != header.config_hash:
        check_replacing(path, same=is_stale(header, found))
    same = changes.has_same_settings(
        header, found, path, update=settings.update,
        hint="`overwrite=True` replaces it; `out='FILE'` keeps both",
        stale_hint="`update=True` makes it again; ")
    if same:
        console.note(f"{path} already exists, made with the same settings")
    return same
