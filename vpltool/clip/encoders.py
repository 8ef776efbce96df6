"""Loading vision encoders: the CLIP's own tower, or a second one of a CLIP, of timm, or of DINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vpltool.clip import models
from vpltool.clip.load import fingerprint, load_clip, normalised
from vpltool.clip.stored_towers import read_entry
from vpltool.clip.timm_towers import TIMM, TimmTower, check_timm, create_timm, fill_timm
from vpltool.clip.towers import is_state_of_vit, tower_from_state, tower_from_timm
from vpltool.clip.transformers_towers import CONFIG, HF, fetch_folder, load_folder
from vpltool.clip.weights import read_weights, recognise, without_random_init
from vpltool.core.tower import INSTEAD_OF, Tower
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError
from vpltool.file_hashes import hashes_of

DINO = "dino:"
"""Prefix of a file that is said to be DINO's or DINOv2's."""

FORMS = ("a file of DINO's or DINOv2's weights, `encoder='timm:MODEL'`, `encoder='hf:ORG/NAME'`, "
         "or a CLIP of open_clip, `encoder='MODEL:PRETRAINED'`")


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from.

    `form` is `state` (a file with the names of DINO's code), `dino` (one that is said to be
    DINO's), `timm`, `transformers`, or `clip`.
    """

    form: str
    model: str = ""  # name in timm or open_clip, or a repository in transformers' form
    pretrained: str = ""  # tag or repository, if there is no path
    path: Path | None = None  # weights file, or folder; None for a download

    @property
    def weights(self) -> Path | None:
        """The file that holds the weights; None for a download."""
        if self.path is None or self.path.is_file():
            return self.path
        if self.form == "transformers":
            return next(iter(sorted(self.path.glob("*.safetensors"))), None)
        return models.find_weights(self.path).path

    def setting(self, path: str) -> str:
        """Return the setting `encoder` of this source, with another spelling of its path."""
        what = path if self.path else self.pretrained
        if self.form == "transformers":
            return what or HF + self.model
        prefix, colon = {"timm": (TIMM, ","), "dino": (DINO, "")}.get(self.form, ("", ":"))
        return prefix + colon.join(filter(None, (self.model, what)))


@dataclass(frozen=True)
class Encoder:
    """A frozen vision encoder."""

    vision: Tower  # in evaluation mode
    mean: models.Colour  # mean of RGB in [0, 1], subtracted before encoding
    std: models.Colour  # standard deviation of RGB; photos are divided by it
    identity: dict[str, str]  # for headers: `name`, `pretrained`, `fingerprint`, a file's `weights`


def load_vision(model: str, pretrained: str, device: torch.device, *, base: Path = Path(),
                normalise: str = "model") -> Encoder:
    """Load the vision tower of a CLIP, as `load_clip`; without open_clip if it is remembered."""
    known = read_entry(models.find_source(model, pretrained, base))
    if known is None:
        clip = load_clip(model, pretrained, device, base=base, normalise=normalise)
        return Encoder(clip.vision, clip.mean, clip.std, clip.identity)
    vision, colours, identity = known
    return Encoder(vision.to(device), *normalised(colours, identity, normalise))


def with_head(encoder: Encoder, needs: str) -> VisionTower:
    """Return the tower of an encoder whose blocks vpltool runs itself, as GradCAM requires.

    Raises a VplError if it runs by its own code; `needs` names what requires it.
    """
    if not isinstance(encoder.vision, VisionTower):
        raise VplError(f"{needs} needs the last block of the encoder, and "
                       f"{encoder.identity['name']} runs by its own code",
                       INSTEAD_OF["tokens"])
    return encoder.vision


def find_encoder(given: str, folders: Sequence[Path]) -> EncoderSource:
    """Parse the setting `encoder`; only names and files are looked at.

    It is `FILE`, `FOLDER`, `dino:FILE`, `timm:MODEL[,FILE]`, `MODEL:PRETRAINED`, `hf:org/name` (of
    transformers), or `hf-hub:org/name` (of open_clip). A relative path belongs to the first of the
    folders in which it exists. Raises a VplError if it is none of these, there is no such file, or
    it is not a name on the hub.
    """
    def find(path: str) -> Path | None:
        return next((folder / path for folder in folders if path and (folder / path).exists()),
                    None)

    if given.startswith(TIMM):
        model, _, file = given.removeprefix(TIMM).partition(",")
        return EncoderSource("timm", model, path=_file_of(given, file, find(file)))
    if given.startswith(DINO):
        file = given.removeprefix(DINO)
        return EncoderSource("dino", path=_file_of(given, file, find(file)))
    if given.startswith(HF):
        return EncoderSource("transformers", models.repository_of(given, HF, f"encoder={given!r}"))
    path = find(given)
    if path is not None:
        if (path / CONFIG).is_file() and not (path / models.CONFIG).is_file():
            return EncoderSource("transformers", path=path)
        return EncoderSource("clip" if path.is_dir() else "state", path=path)
    if given.startswith(models.HUB):
        return EncoderSource("clip", pretrained=given)
    model, _, pretrained = given.partition(":")
    if not pretrained:
        raise VplError(f"`encoder={given!r}`: no such file, and not of the form MODEL:PRETRAINED",
                       f"give {FORMS}{models.IF_MOVED}")
    return EncoderSource("clip", model, pretrained, find(pretrained))


def _file_of(given: str, path: str, found: Path | None) -> Path | None:
    """Return the file that was found for a path, or raise a VplError; None without a path."""
    if path and found is None:
        raise VplError(f"`encoder={given!r}`: there is no {path}",
                       f"check the path{models.IF_MOVED}")
    if found and found.is_dir():
        raise VplError(f"`encoder={given!r}`: {path} is a folder",
                       "name the file of the weights in it")
    return found


def check_encoder(source: EncoderSource) -> None:
    """Check an encoder's file and its name in timm, without loading it.

    Raises:
        VplError: the file holds no weights, or a .safetensors those of no encoder of this form, or
            timm has no such model.
    """
    file = recognise(source.weights) if source.weights else None
    if file and file.names and source.form in ("state", "dino"):
        _check_state(source, file.names)
    if source.form == "timm":
        check_timm(source.model)


def load_encoder(source: EncoderSource, device: torch.device) -> Encoder:
    """Load an encoder with all of its weights.

    Raises a VplError if there is no such model or weights, or its tower cannot be used.
    """
    if source.form == "clip":
        return load_vision(source.model, str(source.path or source.pretrained), device)
    file = source.path or Path()
    prefix, library = (HF, "transformers") if source.form == "transformers" else (TIMM, "timm")
    load: Callable[[EncoderSource], tuple[Tower, models.Colours]] = {
        "timm": _load_timm, "transformers": _load_transformers}.get(source.form, _load_state)
    with without_random_init():
        vision, colours = load(source)
    identity = {"name": prefix + source.model if source.model else file.stem,
                "pretrained": file.name or library, "fingerprint": fingerprint(vision)}
    weights = weights_of(source)
    return Encoder(vision.to(device), *colours,
                   identity | ({"weights": weights} if weights else {}))


def random_encoder(source: EncoderSource, seed: int) -> Encoder:
    """Make an encoder of timm with random weights, determined by the seed.

    Raises a VplError if it is not named as one of timm, or timm has no such model.
    """
    if source.form != "timm" or source.path is not None:
        raise VplError("random weights are for a network that timm builds",
                       f"`encoder='{TIMM}MODEL'`")
    vision, colours = _load_timm(source, seed)
    return Encoder(vision, *colours, {"name": f"{TIMM}{source.model}", "pretrained": "random",
                                      "fingerprint": fingerprint(vision)})


def weights_of(source: EncoderSource) -> str:
    """Return a hash of an encoder's file; empty for a download."""
    if source.path is None:
        return ""
    if source.form == "clip":
        return models.local_weights(source.model, str(source.path), Path())
    if source.form == "transformers":
        return "".join(hashes_of(source.path, sorted(
            file.name for file in source.path.glob("*.safetensors"))).values())
    return hashes_of(source.path.parent, (source.path.name,)).get(source.path.name, "")


_TIMMS = ("head.", "reg_token", "fc_norm.", "norm_pre.", "attn_pool.")
"""Beginnings of names of tensors that timm's ViTs have, and DINO's and DINOv2's files lack."""

_DINOS = ("mask_token", "register_tokens")
"""Tensors that DINOv2's files have, and timm's lack."""


def _load_state(source: EncoderSource) -> tuple[Tower, models.Colours]:
    """Load a file with the names of DINO's code, which timm shares, with other colours."""
    assert source.path is not None
    state = read_weights(recognise(source.path))
    # What it says of a tower that does not fit is more precise.
    tower = tower_from_state(state, str(source.path)) if is_state_of_vit(state) else None
    _check_state(source, tuple(state))
    assert tower is not None
    return tower, models.IMAGENET


def _check_state(source: EncoderSource, names: Sequence[str]) -> None:
    """Check that tensors of these names are DINO's or DINOv2's, not another model's of timm."""
    assert source.path is not None
    if not is_state_of_vit(names):
        raise VplError(f"{source.path} {_other_format(names)}", f"give {FORMS}")
    timms = next((name for name in names if name.startswith(_TIMMS)), "")
    named = source.path.name.startswith("dino") or not {*names}.isdisjoint(_DINOS)
    if source.form == "dino" or named and not timms:
        return
    raise VplError(f"{source.path} " + (
        f"is a model of timm: it has `{timms}`" if timms else
        "may be DINO's or a model of timm: their tensors have the same names, their photos may be "
        "normalised differently"),
        f"`encoder='{TIMM}MODEL,{source.path}'` names timm's model; "
        f"`encoder='{DINO}{source.path}'`, if it is DINO's or DINOv2's")


def _other_format(names: Sequence[str]) -> str:
    if any(name.startswith("visual.") for name in names):
        return "holds a CLIP, and does not say which"
    if any(name.startswith(("encoder.layer.", "vision_model.")) for name in names):
        return "is in the format of the package transformers, not DINO's own"
    return f"has no tensors with DINO's names, but `{names[0]}`"


def _load_transformers(source: EncoderSource) -> tuple[Tower, models.Colours]:
    folder = source.path or fetch_folder(source.model)
    return load_folder(folder, HF + (source.model or folder.name))


def _load_timm(source: EncoderSource, seed: int | None = None) -> tuple[Tower, models.Colours]:
    """Load a model of timm; with a seed, with random weights."""
    model, options = create_timm(source.model, seed=seed,
                                 pretrained=source.path is None and seed is None)
    if source.path is not None:
        fill_timm(model, read_weights(recognise(source.path)), source.model, str(source.path))
    colours = models.colours_of(model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    try:
        return tower_from_timm(model, TIMM + source.model), colours
    except VplError:
        # Not a plain ViT: no GradCAM.
        return TimmTower(model, source.model, options), colours
