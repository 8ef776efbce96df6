"""Stored features in place of photos: whether they serve a decoder, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, Workspace
from vpltool.methods.inputs import side_of
from vpltool.stages import _inputs
from vpltool.stages._segmenters import reads_of


class FeatureChoice(Protocol):
    """The settings that choose features instead of photos."""

    @property
    def features(self) -> Path | None:
        """Their folder, if it is named."""

    @property
    def source(self) -> str:
        """What is read: features, photos, or what serves."""

    @property
    def split(self) -> str:
        """Of the photos."""

    @property
    def flip(self) -> bool:
        """Whether to see photos mirrored, too."""

    @property
    def max_side(self) -> int | None:
        """Longer photos are scaled down to this first; 0: never; None: as in training."""


def serving_features(workspace: Workspace, header: Header, settings: FeatureChoice,
                     scales: Sequence[float], ids: Sequence[str]) -> InputFolder | None:
    """Find stored features of a split that can take the place of the photos.

    Args:
        workspace: where they are looked for.
        header: of the decoder.
        settings: of `predict`.
        scales: sizes at which photos are to be seen.
        ids: of the photos.

    Raises:
        VplError: they were asked for and cannot; the message says why.
    """
    folder = settings.features or workspace.path / "features" / settings.split
    if settings.source == "photos":
        return None
    if not (folder / "artifact.json").exists():
        if settings.source == "features":
            raise VplError(f"`source='features'`: no features in {folder}", "`source='photos'`")
        return None
    features = _inputs.open_features(workspace, settings.features, settings.split)
    if reason := _reason_against_features(header, features, settings, scales, ids):
        if settings.source == "features":
            raise VplError(f"`source='features'`: {reason}", "`source='photos'`")
        console.note(f"photos are read, since {reason}")
        return None
    _inputs.check_same_model(features.header.model, header.model,
                             f"{features.path} and the decoder")
    return features


def _reason_against_features(header: Header, features: InputFolder, settings: FeatureChoice,
                             scales: Sequence[float], ids: Sequence[str]) -> str:
    """Say why features cannot take the place of the photos; empty if they can."""
    held = features.header.options
    reads, layers = reads_of(header)
    if len(scales) > 1 or settings.flip:
        return "stored features are of one scale, not mirrored"
    side = side_of(header, settings.max_side)
    for name, wanted in (("scale", scales[0]), ("max_side", side)):
        if held[name] != wanted:
            return (f"{features.path} was made with `{name}={held[name]}`, not "
                    f"`{name}={wanted}`")
    if not (reads <= set(held["keep"]) and layers <= set(held.get("layers") or ())
            and ("patches" not in reads or held.get("patches", "block") == "block")):
        return f"{features.path} lacks layers or patches that the decoder reads"
    if any(not features.holds(key) and key not in features.failed for key in ids):
        return f"{features.path} holds only some of the photos"
    return ""
