"""What stages read: features, maps, prototypes; and the headers that say so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import OtherSettings, VplError, part_of
from vpltool.formats import (
    Header,
    InputFolder,
    Photo,
    Workspace,
    expect_header,
    find_folder,
    identity_of_file,
    open_input,
    read_tensors,
)
from vpltool.formats.header import as_recorded, difference, is_same_model, is_stale, tell_options
from vpltool.formats.inputs import supervision_of
from vpltool.formats.manifest import UPDATE_HINT, again
from vpltool.formats.outputs import replaced_photos
from vpltool.formats.replacing import check_replacing
from vpltool.formats.shards import WHOLE, Shard
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.parallel.once import write_alone
from vpltool.settings import Settings, changed, described, recorded
from vpltool.stages._all_photos import known_hashes
from vpltool.stages._checkpoints import is_checkpoint
from vpltool.stages._models import check_words
from vpltool.stages._photo_work import Photos, assigned

BEST_FIRST = ("vision-refined", "vision", "text-refined", "text",
              "tags-salient-refined", "tags-refined", "tags-salient", "tags")
"""Names of maps, masks and predictions, the furthest first: what stages take if none is named."""

SEEDING = tuple(name for name in BEST_FIRST if not name.startswith("vision"))
"""Maps that seeds are taken from: made without vision prototypes."""


OF_TAGS = "tags"
"""Name of the prototypes that are made from tags alone."""


def make_header(
    workspace: Workspace, kind: str, command: str, settings: Settings, *,
    inputs: Mapping[str, InputFolder | Path | str], model: Mapping[str, str],
    options: Mapping[str, Any] | None = None, skip: Collection[str] = (),
) -> Header:
    """Make the header of an artifact from the settings that it is made with.

    Args:
        workspace: paths are told relative to it.
        kind: what is written.
        command: the stage.
        settings: its settings.
        inputs: role to what is read: a folder, a file, or an identity. A role that is the name of
            a setting lets `update` find the input again.
        model: identity of the CLIP.
        options: options that replace the settings' own, or are added.
        skip: settings that have no effect here.
    """
    identities, sources = {}, {}
    for role, item in inputs.items():
        if isinstance(item, str):
            identities[role] = item
            continue
        identities[role], path = ((item.identity, item.path) if isinstance(item, InputFolder)
                                  else (identity_of_file(item), item))
        sources[role] = relative_path(path, workspace.path)
    call = {name: value for name, value in changed(settings).items() if name not in sources}
    out = getattr(settings, "out", None)
    # Of an artifact elsewhere nothing is known afterwards; and its bytes must not depend on where.
    if out is not None and not (inside := relative_path(out, workspace.path)).startswith(".."):
        call["out"] = inside
    return Header(kind=kind, command=command, model=dict(model), inputs=identities, call=call,
                  options=recorded(settings, skip) | dict(options or {}), sources=sources,
                  supervision=supervision_of(inputs.values()))


def relative_path(path: Path, base: Path) -> str:
    """Format a path as seen from a folder."""
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()


def open_features(workspace: Workspace, choice: Path | None, split: str) -> InputFolder:
    """Open the features of a split, or of a folder that is named.

    Raises:
        VplError: they are not there, or there is no such split.
    """
    workspace.photos(split)
    if choice and not choice.exists() and (workspace.path / choice).exists():
        choice = workspace.path / choice
    return open_input(choice or workspace.path / "features" / split, ("features",),
                      f"`extract(split={split!r})`")


def class_rows(workspace: Workspace, settings: Settings, name: str = "prototypes") -> str:
    """NAME or path of the prototypes that a setting names, in place of its default those of tags.

    Where an encoder takes the CLIP's place, its patches have no text to be compared with.

    Args:
        workspace: the workspace.
        settings: of a stage.
        name: of the setting.
    """
    choice: str = getattr(settings, name)
    default = next(entry.default for entry in described(type(settings)) if entry.name == name)
    given = name in settings.given or choice != default
    return OF_TAGS if workspace.encoder and not given else choice


def check_kept(features: InputFolder, wanted: Sequence[str]) -> None:
    """Check that features hold tensors, before the first photo is opened.

    Raises:
        VplError: they do not; the hint is the `extract`, or `embed`, that keeps them, too.
    """
    kept = features.header.options["keep"]
    missing = [name for name in wanted if name not in kept]
    if missing:
        raise VplError(f"{features.path} holds {', '.join(kept)}, but no {missing[0]}",
                       _keeping(features.header, list(dict.fromkeys([*kept, *missing]))))


def _keeping(header: Header, names: Sequence[str]) -> str:
    """The call that makes features again with these tensors: a hint."""
    split, every = header.options["split"], ",".join(names)
    if header.command == "extract":
        encoder = header.call.get("encoder")
        return (f"`extract(split={split!r}, keep={every!r}, "
                f"{f'encoder={encoder!r}, ' if encoder else ''}overwrite=True)`")
    carried = ",".join(name for name in names if name != "patches")
    return (f"`embed(method={header.options['method']!r}, split={split!r}, carry={carried!r}, "
            "overwrite=True)`, where the features that it reads hold them")


def find_cams(workspace: Workspace, choice: str, split: str, preferred: Sequence[str],
              hint: str = "") -> InputFolder:
    """Find CAMs by NAME or path; if none is named, the first of those preferred.

    Raises:
        VplError: there are none, they are of other classes, or there is no such split.
    """
    workspace.photos(split)
    found = find_folder(workspace.path, ("cams",), choice, split, ("cams",),
                        hint or f"`cam(split={split!r})`", preferred=preferred)
    workspace.check_classes(found.header, found.path)
    return found


def photos_with(workspace: Workspace, split: str, limit: int, *inputs: InputFolder,
                shard: Shard = WHOLE) -> Photos:
    """The photos of a split, or of a shard of it, that all inputs hold, with their tags as own.

    Raises:
        VplError: an input is not complete, holds none of them, or was made from other photos or
            tags.
    """
    photos = assigned(workspace.photos(split, limit), shard, lambda photo: photo.id)
    ids = [photo.id for photo in photos]
    left_out = {key: why for folder in inputs for key, why in folder.left_out(ids).items()}
    for folder in inputs:
        ids = folder.available(ids)
    check_current(workspace, ids, *inputs)
    hashes = known_hashes(workspace, photos, inputs)
    return Photos(ids, tags_of(workspace, photos), left_out, not limit, shard,
                  {key: hashes[key] for key in (*ids, *left_out) if key in hashes})


def check_current(workspace: Workspace, ids: Collection[str], *inputs: InputFolder) -> None:
    """Check that folders were made from the photos that are there, and from their tags.

    Args:
        workspace: where the photos are.
        ids: those that are read.
        inputs: the folders.

    Raises:
        VplError: one was not; what makes these photos' files again is the hint.
    """
    wanted = set(ids)
    photos = [photo for photo in workspace.photos() if photo.id in wanted]
    hashes, tags = workspace.hashes_of(photos), tags_of(workspace, photos)
    for folder in inputs:
        _check_current(folder, wanted, hashes, tags)


def _check_current(folder: InputFolder, ids: Collection[str], hashes: Mapping[str, str],
                   tags: Mapping[str, str]) -> None:
    tagged = folder.own if folder.kind in ("cams", "masks") else {}
    for what, before, now in (("photo replaced", folder.photos, hashes),
                              ("tags changed", tagged, tags)):
        old = sorted(replaced_photos(before, now).intersection(ids))
        if old:
            raise VplError(
                f"{folder.path}: {part_of(len(old), len(ids), 'files', 'is', 'are')} out of date "
                f"({what}): {', '.join(old[:5])}{' …' if old[5:] else ''}",
                f"{UPDATE_HINT}{again(folder.header)} makes only these again")


def tags_of(workspace: Workspace, photos: Iterable[Photo]) -> dict[str, str]:
    """Id to class indices, as text: what of a photo's own its maps depend on."""
    return {photo.id: " ".join(map(str, workspace.indices_of(photo))) for photo in photos}


def paths_of(workspace: Workspace, split: str) -> dict[str, Path]:
    """Id to path of each photo of a split."""
    return {photo.id: workspace.image_path(photo) for photo in workspace.photos(split)}


def tag_tensors(workspace: Workspace, photos: Iterable[Photo]) -> dict[str, Tensor]:
    """Id to class indices (K,) of each photo; on the host, where reading them does not wait."""
    return {photo.id: torch.tensor(workspace.indices_of(photo), dtype=torch.long)
            for photo in photos}


@dataclass(frozen=True)
class Prototypes:
    """Prototypes that were read.

    Args:
        path: their file.
        header: its header.
        rows: L2-normed vectors (rows, dim).
        class_index: class of each row (rows,), 0 is the background.
        of_rows: what else the file says of each row, see `formats.kinds`.
        of_space: tensors of the map into the rows' own space; empty: CLIP's joint space.
    """

    path: Path
    header: Header
    rows: Tensor
    class_index: Tensor
    of_rows: Mapping[str, Tensor]
    of_space: Mapping[str, Tensor]

    @property
    def photos(self) -> Sequence[str]:
        """Ids of the photos that `photo_of` numbers."""
        return tuple(self.header.facts.get("photos", ()))


def read_prototypes(workspace: Workspace, choice: str, *, aligned: bool = False) -> Prototypes:
    """Read prototypes by NAME (`text`, `vision`) or path.

    Args:
        workspace: whose classes they must be of.
        choice: NAME or path.
        aligned: whether the caller maps patches into the rows' own space, if they have one.

    Raises:
        VplError: they are not there, are of other classes, or lie in another space than CLIP's; the
            hint is what makes them.
    """
    path = find_prototypes(workspace.path, choice)
    if choice == "text" and not path.exists():
        check_words(workspace, "`prototypes='tags'`, which `tag_prototypes()` makes")
    hint = prototypes_hint(workspace.path, choice)
    header, tensors = read_tensors(path, "prototypes", made_by=hint)
    owners = tensors["class_index"].tolist()
    named = dict(zip(owners, header.facts.get("rows", []), strict=False))
    named.pop(0, None)
    wanted = {index + 1: name for index, name in enumerate(workspace.classes)}
    if named != wanted:
        old, new = set(named.values()), set(wanted.values())
        reasons = [f"class `{name}` is new" for name in sorted(new - old)]
        reasons += [f"class `{name}` is gone" for name in sorted(old - new)]
        raise VplError(f"{path} has other classes than the workspace: "
                       f"{'; '.join(reasons) or 'their order has changed'}",
                       f"{UPDATE_HINT}{hint}, with `overwrite=True`, replaces it")
    rows, index = tensors.pop("prototypes"), tensors.pop("class_index")
    of_space = {name: tensors.pop(name) for name in list(tensors) if name.startswith("space_")}
    if of_space and not aligned:
        raise VplError(f"{path} lies in an aligned space, but prototypes in CLIP's joint "
                       "space are needed", "name others, such as `text` or `vision`; `cam`, "
                       "`seed_prototypes` and `gap` take aligned ones")
    return Prototypes(path, header, rows, index, tensors, of_space)


_ROW_MAKERS = {"context_of": ("whose context its rows are", "lpcam"),
               "photo_of": ("which photos its rows come from", "bank"),
               "scale": ("how its rows are weighed", "discriminant"),
               "bias": ("how its rows are weighed", "discriminant")}


def check_rows(prototypes: Prototypes, reads: Collection[str]) -> None:
    """Check that prototypes say of their rows what a method reads, before the first photo.

    Raises:
        VplError: they do not; the hint is the estimator that makes such prototypes.
    """
    for name, (what, maker) in _ROW_MAKERS.items():
        if name in reads and name not in prototypes.of_rows:
            raise VplError(f"{prototypes.path} does not say {what}",
                           f"`seed_prototypes(method={maker!r}, out='{maker}.safetensors')`, then "
                           f"`prototypes='{maker}.safetensors'`")


def find_prototypes(work: Path, choice: str) -> Path:
    """Path of prototypes given by NAME or path."""
    named = work / "prototypes" / f"{choice}.safetensors"
    return Path(choice) if not named.exists() and choice.endswith(".safetensors") else named


_MAKERS = {"text": "`text_prototypes()`", "vision": "`learn_prototypes()`",
           "shifted": "`shift_gap()`", "seeds": "`seed_prototypes()`", "aligned": "`align()`",
           OF_TAGS: "`tag_prototypes()`"}


def prototypes_hint(work: Path, choice: str) -> str:
    """The call that makes prototypes of a name; for an unknown name, the nearest that is there."""
    import difflib

    there = [path.stem for path in sorted((work / "prototypes").glob("*.safetensors"))
             if not is_checkpoint(path)]
    near = difflib.get_close_matches(choice, {*there, *_MAKERS}, n=1)
    if choice in _MAKERS or not near:
        return _MAKERS.get(choice, f"there are {', '.join(there)}" if there
                           else _MAKERS["text"])
    made = "" if near[0] in there else f" {_MAKERS[near[0]]} makes it"
    return f"did you mean `{near[0]}`?{made}"


def check_same_model(first: Mapping[str, str], second: Mapping[str, str], what: str) -> None:
    """Check that two artifacts come from the same CLIP.

    Raises:
        VplError: they do not; `what` says which two, `features/train and prototypes/text`.
    """
    if not is_same_model(first, second):
        beside = "encoder" in {*first} ^ {*second}
        names = [f"{model.get('name', '?')} ({model.get('pretrained', '?')}, "
                 f"{_shown(model, other)}"
                 f"{', ' + model['normalise'] if 'normalise' in model else ''})"
                 for model, other in ((first, second), (second, first))]
        raise VplError(
            f"{what} come from different models: {names[0]} and {names[1]}",
            "the features of the CLIP are those of `extract(encoder='words')`: "
            "`features='features-second/SPLIT'`" if beside else
            "make one of them again with the workspace's model: "
            "`text_prototypes(overwrite=True)`, or `extract(overwrite=True)`")


def _shown(model: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The part of a CLIP's identity that tells it from another one of its name, shortened."""
    key = "fingerprint" if model.get("fingerprint") != other.get("fingerprint") else "weights"
    return model.get(key, "?")[:6]


def check_file(path: Path, header: Header, *, overwrite: bool, update: bool = False,
               by_model_name: bool = False) -> bool:
    """Tell whether a single file is there already, made with the same configuration.

    Args:
        path: the file.
        header: as it would be written now.
        overwrite: never done; the caller replaces it.
        update: not done if the same command made it with other options or from other inputs.
        by_model_name: compare models without their fingerprints, when it is not loaded yet.

    Raises:
        OtherSettings: it is there, made with other settings.
        VplError: another command is writing it.
    """
    write_alone(path)
    if overwrite or not path.exists():
        check_replacing(path, same=not path.exists())
        return False
    found = expect_header(path, header.kind)
    header = as_recorded(header, found)
    if by_model_name:
        found = replace(found, model={key: value for key, value in found.model.items()
                                      if key in header.model or key == "normalise"})
    if found.config_hash == header.config_hash:
        console.note(f"{path} already exists, made with the same settings")
        return True
    stale = is_stale(header, found)
    check_replacing(path, same=stale)
    if update and found.command == header.command:
        tell_options(header, found, path)
        return False
    reasons = "; ".join(difference(header, found, path))
    raise OtherSettings(f"{path} was made with other settings: {reasons}",
                        (UPDATE_HINT if stale else "")
                        + "`overwrite=True` replaces it; `out='FILE'` keeps both")


def smaller_photos_hint(header: Header) -> str:
    """What to do where the features of one photo do not fit into memory: a hint."""
    held = header.options
    if header.command != "extract":
        return f"`device='cpu'`, or smaller photos in `extract(split={held['split']!r})`"
    return (f"`extract(split={held['split']!r}, keep={','.join(held['keep'])!r}, "
            f"max_side={(held['max_side'] or 2048) // 2}, overwrite=True)`, or `device='cpu'`")


def read_known_photo(workspace: Workspace, photo: Photo) -> npt.NDArray[np.uint8]:
    """Read a photo that an earlier stage could read: RGB (H, W, 3).

    Raises:
        VplError: it cannot be read any more; the photo is named.
    """
    from vpltool.core.photos import read_photo

    path = workspace.image_path(photo)
    with naming_photo(photo, path):
        return read_photo(path)


@contextlib.contextmanager
def naming_photo(photo: Photo, path: Path) -> Iterator[None]:
    """Turn what reading a photo raises into an error that names it.

    Raises:
        VplError: the photo cannot be read.
    """
    from vpltool.core.photos import describe_failure

    try:
        yield
    except OSError as error:
        raise VplError(f"{photo.id}: {describe_failure(path, error)}",
                       "fix it and run the same command again") from error
