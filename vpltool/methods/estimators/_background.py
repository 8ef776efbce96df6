"""Rows of the background: words of the text, or clusters of the background's seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.settings import NoEffect, Settings, setting

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.methods.inputs import Pixels


@dataclass(frozen=True, kw_only=True)
class BackgroundSettings(Settings):
    """Settings of the background's rows."""

    background: str = setting(
        "words", "Background rows: words of the text prototypes, or clusters of the pixels below "
                 "phi-background.", choices=("words", "clusters"),
        source="vpltool's reading: GradCAM needs the background in the same space")
    clusters: int = setting(
        24, "Number of background clusters.", low=1, source="vpltool",
        no_effect=[NoEffect({"background": ("words",)}, "there is a row for each word")])


def with_background(pool: Pixels, text: Tensor, text_index: Tensor, settings: BackgroundSettings,
                    seed: int) -> tuple[Tensor, Tensor]:
    """Give the text's rows and their classes, with clusters as background if asked for.

    Raises:
        VplError: no pixel is background.
    """
    from vpltool.core.seeds import with_background_clusters

    if settings.background == "words":
        return text, text_index
    try:
        return with_background_clusters(pool.embeddings, pool.labels, text, text_index,
                                        settings.clusters, seed=seed)
    except ValueError as error:
        raise VplError(f"`background='clusters'`: {error}, none is below phi_background",
                       "raise it, for example `phi_background=0.5`, or take "
                       "`background='words'`") from error
