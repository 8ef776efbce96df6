"""GradCAM at the input of CLIP's last block (CLIP-ES, CVPR 2023, eq. 2 to 4).

All classes of a batch are done in one backward pass through the last block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of GradCAM."""

    tau: float = setting(0.01, "Temperature of the class scores.", low=1e-6,
                         source="CLIP: logit scale 100")
    target: str = setting(
        "margin", "Score to differentiate: margin, or softmax as in CLIP-ES. Both give the same "
                  "map; the margin does not underflow.", choices=("margin", "softmax"))


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32."""
    from vpltool.core.gradcam import gradcam

    assert batch.head is not None
    return gradcam(batch.head, batch.tensors["tokens"], batch.grid, batch.prototypes,
                   batch.class_index, batch.present, tau=settings.tau, target=settings.target)
