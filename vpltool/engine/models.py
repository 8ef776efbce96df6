"""Models of a workspace: the encoder of its photos, and a CLIP for text."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console
from vpltool.clip import catalogue, encoders, load, models
from vpltool.errors import VplError
from vpltool.formats import Workspace
from vpltool.formats.workspace import relative_to
from vpltool.lazy import torch
from vpltool.names import is_on_hub, without_folders
from vpltool.parallel.device import find_device
from vpltool.settings import Settings, setting

WORDS = "words"
"""Value of `extract`'s setting `encoder` for the CLIP beside the workspace's encoder."""

AUTO = "auto"
"""Value of `prepare`'s setting `encoder` for an automatic choice; see docs/models.md."""

DEFAULT_ENCODERS = {"cpu": "timm:vit_small_patch14_reg4_dinov2.lvd142m",
                    "cuda": "timm:vit_base_patch14_reg4_dinov2.lvd142m"}
"""Encoder that `auto` selects by device type: DINOv2 with registers, Apache-2.0."""

DEFAULT_CLIP = ("ViT-B-16-quickgelu", "openai")
"""`model` and `pretrained`; known to be valid, since asking open_clip takes seconds."""


def load_main(workspace: Workspace, device: torch.device) -> encoders.Encoder:
    """Load the encoder of a workspace, or else its CLIP's vision tower, or raise a VplError."""
    if not workspace.encoder:
        return load_clip_vision(workspace, device)
    encoder = encoders.load_encoder(
        encoders.find_encoder(workspace.encoder, (workspace.path,)), device)
    mean, std, identity = load.normalised((encoder.mean, encoder.std), encoder.identity,
                                          workspace.normalise)
    return replace(encoder, mean=mean, std=std,
                   identity={**identity, "encoder": workspace.main_encoder})


def model_weights(workspace: Workspace) -> dict[str, str]:
    """Return hashes of the weights files of the `CLIP` and of the `encoder`; empty if not local."""
    encoder = ""
    if workspace.encoder:
        with contextlib.suppress(VplError):
            encoder = encoders.weights_of(encoders.find_encoder(workspace.encoder,
                                                                (workspace.path,)))
    return {"CLIP": models.local_weights(workspace.model, workspace.pretrained, workspace.path),
            "encoder": encoder}


def only_moved(old: Workspace, new: Workspace) -> bool:
    """Return whether the models are the same, and only the folders of their files may differ.

    Headers hold the names of files, so names must be equal. A file that is gone cannot be compared,
    and counts as the same.
    """
    names, others = (list(map(without_folders, (found.encoder, found.model, found.pretrained)))
                     for found in (old, new))
    if names != others:
        return False
    now = model_weights(new)
    return all(before in ("", now[model]) for model, before in model_weights(old).items())


def with_weights(encoder: str, weights: str) -> str:
    """Return the setting `encoder` with other weights; empty if it is empty.

    The weights may be spelled as the setting itself, as in `timm:MODEL,FILE`.
    """
    if not encoder or is_on_hub(encoder) or weights.startswith("timm:"):
        return encoder and weights
    if encoder.startswith("timm:"):
        return f"{encoder.partition(',')[0]},{weights}"
    model, colon, _ = encoder.partition(":")
    return f"{model}:{weights}" if colon else weights


def load_clip_vision(workspace: Workspace, device: torch.device) -> encoders.Encoder:
    """Load the vision tower of a workspace's CLIP, or raise a VplError."""
    check_words(workspace)
    return encoders.load_vision(workspace.model, workspace.pretrained, device, base=workspace.path,
                                normalise=workspace.normalise)


def check_words(workspace: Workspace, instead: str = "") -> None:
    """Raise a VplError if a workspace has no CLIP, before work that needs text.

    `instead` is another way, for the hint.
    """
    if not workspace.has_words:
        raise VplError(
            f"this workspace has no words: its encoder, {workspace.main_encoder}, was trained "
            "without text", (f"{instead}; or " if instead else "")
            + "the same `prepare` again, with `words='MODEL:PRETRAINED'`: a CLIP beside it")


@dataclass(frozen=True)
class ChosenModels:
    """The models of a workspace, as in workspace.json.

    Args:
        model: name of the CLIP; empty if there is none.
        encoder: image encoder used instead of the CLIP's.
    """

    model: str
    pretrained: str
    encoder: str = ""

    @classmethod
    def of(cls, workspace: Workspace) -> ChosenModels:
        """Return the models of an existing workspace."""
        return cls(workspace.model, workspace.pretrained, workspace.encoder)

    def changes_since(self, earlier: ChosenModels) -> list[str]:
        """Describe what has changed, one phrase each; adding a CLIP to an encoder is no change."""
        if self.encoder != earlier.encoder:
            return [f"the encoder was {earlier.encoder or earlier._clip}, now "
                    f"{self.encoder or self._clip}"]
        if earlier.model and (self.model, self.pretrained) != (earlier.model, earlier.pretrained):
            return [f"the CLIP was {earlier._clip}, now {self._clip}"]
        return []

    @property
    def _clip(self) -> str:
        return f"{self.model} ({self.pretrained})"

    def licences(self) -> list[str]:
        """Return a line about the licence of each model's weights, if known."""
        encoder, _, file = self.encoder.partition(",")
        named = {name: models.licence_of({"name": name, "pretrained": Path(weights).name})
                 for name, weights in ((encoder, file), (self.model, self.pretrained))}
        return [f"the licence of the weights of {name}: {licence}"
                for name, licence in named.items() if licence]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Settings of `prepare` that name models."""

    model: str = setting(DEFAULT_CLIP[0], "CLIP model; its name in open_clip.")
    pretrained: str = setting(
        DEFAULT_CLIP[1], "Weights of the model; a tag of open_clip, hf-hub:ORG/NAME, a file, or a "
                         "folder with open_clip_config.json.", metavar="TAG-OR-PATH")
    encoder: str = setting(
        "", "Encode photos with this vision encoder instead of a CLIP; timm:MODEL, "
            "timm:MODEL,FILE, hf:ORG/NAME, a folder, or DINO's weights; auto: DINOv2. The "
            "workspace then has no words.", metavar="NAME-OR-FILE")
    words: str = setting(
        "", "With an encoder: a CLIP beside it, for text prototypes and tags; MODEL:PRETRAINED, "
            "hf-hub:ORG/NAME, or a folder.", metavar="CLIP", brief=False)


def choose_models(path: Path, settings: ModelSettings, earlier: Workspace | None) -> ChosenModels:
    """Choose the models of a workspace: those given, else its present ones.

    Raises a VplError if a model, tag, file or folder does not exist or is not supported, or two
    settings contradict each other.
    """
    encoder, words = settings.encoder, settings.words
    clip_given = [name for name in ("model", "pretrained") if settings.is_given(name)]
    if encoder == AUTO and (clip_given or earlier):
        encoder = ""
    elif encoder == AUTO:
        encoder = DEFAULT_ENCODERS.get(find_device("auto").type, DEFAULT_ENCODERS["cpu"])
        console.note(f"encoder: {encoder}; `encoder` names another, `pretrained` a CLIP")
    if clip_given and (encoder or words):
        clip, other = clip_given[0], "encoder" if encoder else "words"
        raise VplError(f"`{clip}={getattr(settings, clip)!r}` names the CLIP that encodes the "
                       f"photos, and `{other}={getattr(settings, other)!r}` another model",
                       "an encoder with a CLIP beside it is `encoder='timm:MODEL', "
                       "words='MODEL:PRETRAINED'`; a CLIP alone `model='MODEL', "
                       "pretrained='WEIGHTS'`")
    had = ChosenModels.of(earlier) if earlier else None
    chosen = _named_encoder(path, encoder) if encoder else (
        had.encoder if had and not clip_given else "")
    if words:
        if not chosen:
            raise VplError(f"`words={words!r}` names a CLIP beside an encoder, and there is none",
                           "`encoder='timm:MODEL'` names one; a CLIP alone is `model='MODEL', "
                           "pretrained='WEIGHTS'`")
        return ChosenModels(*_named_words(path, words), chosen)
    if encoder:
        beside = had if had and had.encoder else ChosenModels("", "")
        return ChosenModels(beside.model, beside.pretrained, chosen)
    if had and not clip_given:
        return had
    return ChosenModels(*_named_clip(
        path, settings.model, settings.pretrained, had, warned="model" in settings.given))


def _named_encoder(path: Path, given: str) -> str:
    """Return the setting `encoder` as stored in workspace.json, after checking its file."""
    source = encoders.find_encoder(given, (Path(),))
    # The defaults are known to be valid, and importing timm takes seconds.
    if given not in DEFAULT_ENCODERS.values():
        encoders.check_encoder(source)
    return source.setting(relative_to(source.path, path) if source.path else "")


def _named_words(path: Path, given: str) -> tuple[str, str]:
    """Return model and weights of the setting `words`, which has the syntax of `encoder`."""
    source = encoders.find_encoder(given, (Path(),))
    if source.form != "clip":
        raise VplError(f"`words={given!r}` is not a CLIP",
                       "`words='MODEL:PRETRAINED'` with names of open_clip, a folder with "
                       "open_clip_config.json, or hf-hub:ORG/NAME")
    return _named_clip(path, source.model, str(source.path or source.pretrained))


def _named_clip(path: Path, model: str, pretrained: str, had: ChosenModels | None = None, *,
                warned: bool = False) -> tuple[str, str]:
    """Return model and weights of a CLIP as stored in workspace.json.

    Args:
        had: the workspace's present models; a new weights file is checked against the model.
        warned: whether to warn if the weights already determine the model.
    """
    source = models.find_source(model, pretrained)
    if warned and model not in (source.model, source.pretrained):
        console.warn(f"`model={model!r}` has no effect: `{pretrained}` already determines the "
                     "model")
    if source.form in ("tag", "file") and (model, pretrained) != DEFAULT_CLIP:
        for guess in catalogue.check_source(source):
            console.warn(guess)
    if source.path is None:
        return source.model, source.pretrained
    # A folder defines its model; its name is used as the model's.
    name = source.path.resolve().name if source.form == "folder" else source.model
    chosen = name, relative_to(source.path, path)
    if source.form == "file" and (had is None or chosen != (had.model, had.pretrained)):
        load.check_weights(source)
    return chosen
