"""open_clip's catalogue: names, tags and activations; and the files that stand behind them.

The only module that imports open_clip.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vpltool.clip.models import (
    CONFIG,
    HUB,
    INSTEAD,
    WEIGHT_NAMES,
    ModelSource,
    check_tower,
    find_weights,
    read_config,
)
from vpltool.clip.weights import WeightFile, recognise
from vpltool.errors import VplError, near_name

HUB_SECONDS = 10
"""How long to wait for the hub to answer at all."""

QUICK = "-quickgelu"
"""How open_clip's names of models with QuickGELU end."""

Published = dict[str, Any]
"""What open_clip knows of published weights: `quick_gelu`, `mean`, `std`, `hf_hub`, `url`."""


def import_open_clip() -> Any:
    """Import open_clip, also where torchvision's compiled operators do not fit torch.

    open_clip needs nothing of torchvision but its image transforms; yet with a torchvision wheel
    for another build of torch its import fails at registering `nms`. Declaring the operators
    first lets it pass. A torchvision that imports as it should is left alone.
    """
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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
            # The declaration lives as long as the object that made it.
            _declared.append(library)
        import open_clip

    return open_clip


_declared: list[Any] = []


def check_source(source: ModelSource) -> list[str]:
    """Check a model's tag and activation by what open_clip knows; loads nothing.

    Returns:
        what cannot be told and had better be known, a sentence each.

    Raises:
        VplError: the model has no such tag, or the weights were trained with another activation
            than it has.
    """
    open_clip = import_open_clip()
    if source.form == "hub":
        return []
    if source.form == "folder":
        assert source.path is not None
        _check_activation(source, read_config(source.path), _published(open_clip, source),
                          find_weights(source.path).openai)
        return []
    config = open_clip.get_model_config(source.model)
    if source.form == "tag":
        tags = open_clip.list_pretrained_tags_by_model(source.model)
        if not open_clip.is_pretrained_cfg(source.model, source.pretrained):
            twin = _twin(open_clip, source.model)
            if twin and open_clip.is_pretrained_cfg(twin, source.pretrained):
                raise _other_activation(f"the weights {source.pretrained}", source.model, twin,
                                        trained=twin.endswith(QUICK))
            raise VplError(
                f"`{source.pretrained}` is neither a tag of {source.model} nor a file or folder",
                near_name(source.pretrained, tags))
        _check_activation(source, config, _published(open_clip, source), False)
        return []
    assert source.path is not None
    published = _published(open_clip, source)
    openai = recognise(source.path).openai
    _check_activation(source, config, published, openai)
    return [] if published or openai else _guesses(open_clip, source, config)


def _twin(open_clip: Any, model: str) -> str:
    """The same model with the other activation, if open_clip has it."""
    other = model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK
    return other if other in open_clip.list_models() else ""


def _check_activation(source: ModelSource, config: Mapping[str, Any], published: list[Published],
                      openai: bool) -> None:
    """Check that the weights were trained with the activation that the model has.

    Raises:
        VplError: they were not; the features would be worse, and nothing would tell.
    """
    if not published and not openai:
        return
    trained = openai or bool(published[0].get("quick_gelu"))
    if trained == bool(config.get("quick_gelu")):
        return
    what = f"the weights {source.path or source.pretrained}"
    if source.form in ("tag", "file"):
        twin = _twin(import_open_clip(), source.model)
        raise _other_activation(what, source.model, twin, trained=trained)
    raise VplError(
        f"{what} were trained with {_activation(trained)}, and {CONFIG} says otherwise",
        f"set quick_gelu to {str(trained).lower()} in its model_cfg, or give the weights file "
        "and --model")


def _other_activation(what: str, model: str, twin: str, *, trained: bool) -> VplError:
    if not twin:
        return VplError(
            f"open_clip contradicts itself: {what} were trained with {_activation(trained)}, and "
            f"{model}, of which there is no other, has {_activation(not trained)}", INSTEAD)
    return VplError(
        f"{what} were trained with {_activation(trained)}; {model} has "
        f"{_activation(not trained)} and would quietly give worse features",
        f"--model {twin}")


def _activation(quick: bool) -> str:
    return "QuickGELU" if quick else "GELU"


def _published(open_clip: Any, source: ModelSource) -> list[Published]:
    """Find the published weights that these are, by name, and what open_clip knows of them.

    A file is known by its published name (OpenAI's are plain, but have a mark), by its tag within
    its name, or by the repository that it or its folder is called after (as in the hub's cache); a
    folder by its repository.
    """
    if source.form == "tag":
        return [open_clip.get_pretrained_cfg(source.model, source.pretrained)]
    path = source.path.absolute() if source.path else Path(source.model)
    folders = {part.lower().rpartition("--")[2] for part in path.parts}
    stem = _plain(path.stem) if source.form == "file" else ""
    models = (source.model, _twin(open_clip, source.model))
    found: list[tuple[int, Published]] = []
    for model, tag in open_clip.list_pretrained():
        if stem and model not in models:
            continue
        entry = open_clip.get_pretrained_cfg(model, tag)
        repository = entry.get("hf_hub", "").rpartition("/")[0].rpartition("/")[2]
        named = path.name == Path(entry.get("url", "")).name and tag != "openai"
        if repository.lower() in folders or (stem and (
                named or stem == _plain(repository) or f" {_plain(tag)} " in f" {stem} ")):
            found.append((len(tag), entry))
    # `dfn2b_s39b` in a name holds `dfn2b` too: the longest tag is meant.
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _colours(open_clip: Any, model: str, published: list[Published]) -> dict[str, Any]:
    """Mean and deviation of RGB: of the published weights, or what all of the model's share."""
    entries = published[:1] or _siblings(open_clip, model)
    chosen = {(tuple(entry["mean"]), tuple(entry["std"])) for entry in entries}
    return dict(zip(("mean", "std"), chosen.pop(), strict=True)) if len(chosen) == 1 else {}


def _siblings(open_clip: Any, model: str) -> list[Published]:
    return [open_clip.get_pretrained_cfg(model, tag)
            for tag in open_clip.list_pretrained_tags_by_model(model)]


def _guesses(open_clip: Any, source: ModelSource, config: Mapping[str, Any]) -> list[str]:
    """What has to be guessed of a file that is known by nothing."""
    guessed = []
    if _twin(open_clip, source.model):
        guessed.append(f"{_activation(bool(config.get('quick_gelu')))}, as {source.model} says")
    if _siblings(open_clip, source.model) and not _colours(open_clip, source.model, []):
        guessed.append("colours normalised as OpenAI does")
    if not guessed:
        return []
    return [f"{source.pretrained} does not tell how it was trained; taken: {'; '.join(guessed)}. "
            "To be sure, call the file after its tag of open_clip"]


def locate(open_clip: Any, source: ModelSource) -> tuple[str, WeightFile, dict[str, Any]]:
    """Find the weights, or fetch them.

    Returns:
        what open_clip is to build; the weights; `mean` and `std`, empty if the model's own.
    """
    if source.form == "folder":
        assert source.path is not None
        return f"local-dir:{source.path}", find_weights(source.path), {}
    if source.form == "hub":
        repository = source.pretrained.removeprefix(HUB)
        hint = _by_hand(repository)
        config = read_config(_fetch(repository, (CONFIG,), hint).parent)
        check_tower(source.model, config)
        published = _published(open_clip, source)
        _check_activation(source, config, published, openai=False)
        weights = recognise(_fetch(repository, WEIGHT_NAMES, hint))
        if weights.openai:
            _check_activation(source, config, published, openai=True)
        # Again: the weights may have brought a newer state of the repository.
        folder = _fetch(repository, (CONFIG,), hint).parent
        return f"local-dir:{folder}", weights, {}
    published = _published(open_clip, source)
    colours = _colours(open_clip, source.model, published)
    if source.path is not None:
        return source.model, recognise(source.path), colours
    repository, _, name = published[0].get("hf_hub", "").rpartition("/")
    url = published[0].get("url", "")
    if repository:
        names = (name,) if name else WEIGHT_NAMES
        path = _fetch(repository, names, _by_hand(repository, url))
        return source.model, recognise(path), colours
    try:
        path = Path(open_clip.download_pretrained(published[0]))
    except (OSError, RuntimeError) as error:
        raise VplError(f"cannot download {url}: {first_line(error)}",
                       _by_hand("", url)) from error
    return source.model, recognise(path), colours


def _by_hand(repository: str, url: str = "") -> str:
    what = (f"{url} by hand, and prepare again with --pretrained FILE" if url else
            f"{CONFIG} and {WEIGHT_NAMES[0]} (or .bin) from https://huggingface.co/{repository} "
            "into a folder, and prepare again with --pretrained FOLDER")
    return f"without a network: fetch {what} --overwrite"


def _fetch(repository: str, names: Sequence[str], hint: str) -> Path:
    """Give the first of some files that a repository on the hub has; from the cache, if there.

    The hub's client tries for minutes where there is no network; one short question comes first.

    Raises:
        VplError: no network, no such repository, or it has none of the files.
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
        # The client raises its transport's own errors, and has changed its transport.
        except Exception as error:
            missing = isinstance(error, hub.errors.EntryNotFoundError)
            if missing and not isinstance(error, hub.errors.LocalEntryNotFoundError):
                continue
            raise VplError(f"cannot download {name} of {repository}: {first_line(error)}",
                           hint) from error
    raise VplError(f"{repository} on the hub has none of {', '.join(names[:3])}",
                   "choose a repository in open_clip's form")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep libraries from talking: what matters of it comes as an error of ours."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its class."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
