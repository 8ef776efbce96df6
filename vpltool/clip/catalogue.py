"""open_clip's catalogue of models: names, tags, activations, and where their weights are.

The only module that imports open_clip, timm and transformers.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vpltool.clip import models
from vpltool.clip.weights import WeightFile, recognise
from vpltool.errors import VplError, first_line, near_name, silent
from vpltool.json_text import JsonObject

HUB_SECONDS = 10
"""Seconds to wait for the hub's first answer."""

QUICK = "-quickgelu"
"""End of open_clip's names of models with QuickGELU."""

Published = JsonObject
"""open_clip's entry for published weights: `quick_gelu`, `mean`, `std`, `hf_hub`, `url`."""

_INSTALL = {"timm": "pip install timm", "transformers": "pip install 'vpltool[transformers]'"}


def import_open_clip() -> ModuleType:
    """Import open_clip, even if torchvision's compiled operators do not match torch.

    open_clip uses only the image transforms of torchvision. With a torchvision wheel for another
    build of torch, the import fails when it registers `nms`; declaring the operators first avoids
    that. A torchvision that imports without errors is left alone.
    """
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mend_torchvision()
        import open_clip

    refuse_model_code()
    return open_clip


def import_library(name: str) -> ModuleType:
    """Import `timm` or `transformers` with the same care; raise a VplError if it cannot be.

    transformers then runs no Python of a model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mend_torchvision()
            module = importlib.import_module(name)
        except ImportError as error:
            raise VplError(f"{name} cannot be imported: {first_line(error)}", _INSTALL[name]
                           ) from error
    refuse_model_code()
    return module


def refuse_model_code() -> None:
    """Prevent transformers from running, or asking to run, a model's own Python.

    All of its ways to a model's own classes pass through one function, which is replaced.
    """
    if "transformers" not in sys.modules:
        return
    from transformers import dynamic_module_utils

    def refuse(*_: object, **__: object) -> Any:
        raise VplError("the model brings Python of its own, which is not run", models.INSTEAD)

    dynamic_module_utils.get_class_in_module = refuse
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def mend_torchvision() -> None:
    """Import torchvision; declare its operators if it is for another build of torch."""
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) "
                           "-> Tensor")
        # The operators exist only as long as the library object does.
        _declared.append(library)


_declared: list[object] = []


def check_source(source: models.ModelSource) -> list[str]:
    """Check a model's tag and activation by open_clip's catalogue, without loading weights.

    Returns a sentence for each property of the weights that had to be guessed. Raises a VplError if
    the model has no such tag, or its activation is not that of the weights' training.
    """
    open_clip = import_open_clip()
    if source.form == "hub":
        return []
    if source.form == "folder":
        assert source.path is not None
        config, openai = models.read_config(source.path), models.find_weights(source.path).openai
    else:
        config = open_clip.get_model_config(source.model)
        openai = source.path is not None and recognise(source.path).openai
    if source.form == "tag" and not open_clip.is_pretrained_cfg(source.model, source.pretrained):
        twin = _twin(source.model)
        if twin and open_clip.is_pretrained_cfg(twin, source.pretrained):
            raise _other_activation(f"the weights {source.pretrained}", source.model, twin,
                                    trained=twin.endswith(QUICK))
        raise VplError(f"`{source.pretrained}` is neither a tag of {source.model} nor a file or "
                       "folder", near_name(source.pretrained,
                                           open_clip.list_pretrained_tags_by_model(source.model)))
    published = _published(source)
    _check_activation(source, config, published, openai)
    known = published or openai or source.form == "folder"
    return [] if known else _guesses(source, config)


def _twin(model: str) -> str:
    """Return the name of the same model with the other activation; empty if there is none."""
    other = model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK
    return other if other in import_open_clip().list_models() else ""


def _check_activation(source: models.ModelSource, config: Mapping[str, object],
                      published: list[Published], openai: bool) -> None:
    """Refuse weights of another activation, which would silently give worse features."""
    if not published and not openai:
        return
    trained = openai or bool(published[0].get("quick_gelu"))
    if trained == bool(config.get("quick_gelu")):
        return
    what = f"the weights {source.path or source.pretrained}"
    if source.form in ("tag", "file"):
        twin = _twin(source.model)
        raise _other_activation(what, source.model, twin, trained=trained)
    raise VplError(
        f"{what} were trained with {_activation(trained)}, but {models.CONFIG} says otherwise",
        f"set quick_gelu to {str(trained).lower()} in its model_cfg, or name the model and the "
        "weights file: `model='NAME', pretrained='FILE'`")


def _other_activation(what: str, model: str, twin: str, *, trained: bool) -> VplError:
    if not twin:
        return VplError(
            f"open_clip contradicts itself: {what} were trained with {_activation(trained)}, but "
            f"its only {model} has {_activation(not trained)}", models.INSTEAD)
    return VplError(
        f"{what} were trained with {_activation(trained)}; {model} has "
        f"{_activation(not trained)} and would silently give worse features",
        f"`model={twin!r}`")


def _activation(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _published(source: models.ModelSource) -> list[Published]:
    """Look up published weights by name; return open_clip's entries, the best match first.

    A file is recognised by its published name (OpenAI's files have a mark inside instead), by a tag
    in its name, or by the name of a repository in its name or its folder's, as in the hub's cache;
    a folder by the name of its repository.
    """
    open_clip = import_open_clip()
    if source.form == "tag":
        return [open_clip.get_pretrained_cfg(source.model, source.pretrained)]
    path = source.path.absolute() if source.path else Path(source.model)
    folders = {part.lower().rpartition("--")[2] for part in path.parts}
    stem = _plain(path.stem) if source.form == "file" else ""
    names = (source.model, _twin(source.model))
    found: list[tuple[int, Published]] = []
    for model, tag in open_clip.list_pretrained():
        if stem and model not in names:
            continue
        entry = open_clip.get_pretrained_cfg(model, tag)
        repository = entry.get("hf_hub", "").rpartition("/")[0].rpartition("/")[2]
        named = path.name == Path(entry.get("url", "")).name and tag != "openai"
        if repository.lower() in folders or (stem and (
                named or stem == _plain(repository) or f" {_plain(tag)} " in f" {stem} ")):
            found.append((len(tag), entry))
    # A name with `dfn2b_s39b` also contains `dfn2b`: the longest tag is the right one.
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _colours(model: str, published: list[Published]) -> JsonObject:
    """Return `mean` and `std` of RGB of the published weights, or common to all of the model's."""
    entries = published[:1] or _siblings(model)
    chosen = {(tuple(entry["mean"]), tuple(entry["std"])) for entry in entries}
    return dict(zip(("mean", "std"), chosen.pop(), strict=True)) if len(chosen) == 1 else {}


def _siblings(model: str) -> list[Published]:
    open_clip = import_open_clip()
    return [open_clip.get_pretrained_cfg(model, tag)
            for tag in open_clip.list_pretrained_tags_by_model(model)]


def _guesses(source: models.ModelSource, config: Mapping[str, object]) -> list[str]:
    """Return a sentence about what is guessed of an unrecognised file; empty if nothing is."""
    guessed = []
    if _twin(source.model):
        guessed.append(f"{_activation(bool(config.get('quick_gelu')))}, as {source.model} says")
    if _siblings(source.model) and not _colours(source.model, []):
        guessed.append("colours normalised as for OpenAI's models")
    if not guessed:
        return []
    return [f"{source.pretrained} does not say how it was trained; assumed: {'; '.join(guessed)}. "
            "To be sure, name the file after its open_clip tag"]


def locate(source: models.ModelSource) -> tuple[str, WeightFile, JsonObject]:
    """Find the weights on this machine, or download them.

    Returns the name from which open_clip builds the model; the weights; `mean` and `std` of RGB,
    empty if the model's own apply. Raises a VplError if the weights cannot be downloaded, or were
    trained with another activation.
    """
    if source.form == "folder":
        assert source.path is not None
        return f"local-dir:{source.path}", models.find_weights(source.path), {}
    if source.form == "hub":
        repository = source.pretrained.removeprefix(models.HUB)
        hint = _download_hint(repository)
        config = models.read_config(fetch_file(repository, (models.CONFIG,), hint).parent)
        models.check_tower(source.model, config)
        published = _published(source)
        _check_activation(source, config, published, openai=False)
        weights = recognise(fetch_file(repository, models.WEIGHT_NAMES, hint))
        if weights.openai:
            _check_activation(source, config, published, openai=True)
        # Again: downloading the weights may have fetched a newer revision of the repository.
        folder = fetch_file(repository, (models.CONFIG,), hint).parent
        return f"local-dir:{folder}", weights, {}
    published = _published(source)
    colours = _colours(source.model, published)
    if source.path is not None:
        return source.model, recognise(source.path), colours
    repository, _, name = published[0].get("hf_hub", "").rpartition("/")
    url = published[0].get("url", "")
    if repository:
        names = (name,) if name else models.WEIGHT_NAMES
        path = fetch_file(repository, names, _download_hint(repository, url))
        return source.model, recognise(path), colours
    try:
        path = Path(import_open_clip().download_pretrained(published[0]))
    except (OSError, RuntimeError) as error:
        raise VplError(f"cannot download {url}: {first_line(error)}",
                       _download_hint("", url)) from None
    return source.model, recognise(path), colours


def _download_hint(repository: str, url: str = "") -> str:
    what, form = (url, "FILE") if url else (
        f"{models.CONFIG} and {models.WEIGHT_NAMES[0]} (or .bin) from "
        f"https://huggingface.co/{repository} into a folder", "FOLDER")
    return (f"without a network: download {what} elsewhere, and prepare again with "
            f"`pretrained='{form}', overwrite=True`")


def fetch_file(repository: str, names: Sequence[str], hint: str) -> Path:
    """Return the path of the first of `names` that a repository on the hub has.

    A file in the hub's cache is used without a network. Without a network the hub's client retries
    for minutes, so a short request is made first. Raises a VplError without a network, or if there
    is no such repository, or it has none of the files.
    """
    import huggingface_hub as hub

    for name in names:
        with contextlib.suppress(Exception):
            return Path(hub.hf_hub_download(repository, name, local_files_only=True))
    for name in names:
        try:
            with silent():
                hub.get_hf_file_metadata(hub.hf_hub_url(repository, name), timeout=HUB_SECONDS)
            return Path(hub.hf_hub_download(repository, name))
        # The client lets errors of its HTTP library through, and that library has changed.
        except Exception as error:
            missing = isinstance(error, hub.errors.EntryNotFoundError)
            if missing and not isinstance(error, hub.errors.LocalEntryNotFoundError):
                continue
            raise VplError(f"cannot download {name} of {repository}: {first_line(error)}",
                           hint) from None
    raise VplError(f"{repository} on the hub has none of {', '.join(names[:3])}",
                   "choose a repository that open_clip can load")
