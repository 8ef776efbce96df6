"""Masks of a Segment Anything model, from a grid of points (Kirillov et al., ICCV 2023).

Any model that transformers takes for mask generation: SAM, SAM 2, from the hub or a folder. Weights
are read as safetensors and no code of the model's repository is run. SAM learned from masks, so
what is made of its proposals says so. Needs transformers: pip install 'vpltool[transformers]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vpltool import settings
from vpltool.core.proposals import Proposal, Proposals
from vpltool.errors import VplError, check_package, first_line
from vpltool.lazy import Image, np, npt
from vpltool.methods.inputs import ProposalRequest
from vpltool.methods.proposers._photos import max_side_setting, of_photos
from vpltool.settings import RUNNING, setting

READS = ("photo",)
SUPERVISION = "tags, and masks that SAM learned from"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of SAM."""

    model: str = setting("facebook/sam2.1-hiera-tiny", "Model: a name on the hub, or a folder.",
                         metavar="NAME-OR-FOLDER")
    least_iou: float = setting(0.88, "Least IoU that the model predicts for a mask.", low=0, high=1,
                               source="segment-anything, SamAutomaticMaskGenerator")
    least_stability: float = setting(
        0.95, "Least stability of a mask when its threshold moves.", low=0, high=1,
        source="segment-anything, SamAutomaticMaskGenerator")
    crops: int = setting(0, "Layers of crops that are searched for smaller things.", low=0, high=4,
                         source="segment-anything, SamAutomaticMaskGenerator")
    points: int = setting(64, "Points of the grid that run together.", low=1, panel=RUNNING,
                          record="never")
    max_side: int = max_side_setting()


def propose(request: ProposalRequest, settings: Settings
            ) -> Iterator[tuple[str, Proposals | str]]:
    """Load the model; the result yields each photo's masks."""
    generate = _load(settings.model, str(request.device))

    def make(photo: npt.NDArray[np.uint8]) -> Iterator[Proposal]:
        made = generate(Image.fromarray(photo), points_per_batch=settings.points,
                        pred_iou_thresh=settings.least_iou,
                        stability_score_thresh=settings.least_stability,
                        crops_n_layers=settings.crops)
        for inside, score in zip(made["masks"], made["scores"], strict=True):
            yield Proposal(np.asarray(inside, bool), float(np.clip(float(score), 0, 1)))

    return of_photos(request, settings.max_side, make)


def _load(model: str, device: str) -> Any:
    """Load transformers' pipeline."""
    check_package("transformers", "sam needs transformers, which is not installed",
                  "pip install 'vpltool[transformers]'")
    try:
        from transformers import pipeline
    # A torchvision that was built for another torch raises anything.
    except Exception as error:
        raise VplError(f"transformers' mask generation cannot be imported: {first_line(error)}",
                       "it needs torchvision, of the same build as torch: pip install torchvision"
                       ) from error
    try:
        return pipeline("mask-generation", model=model, device=device,
                        model_kwargs={"use_safetensors": True})
    except Exception as error:
        raise VplError(f"`model={model!r}` cannot be loaded: {first_line(error)}",
                       "a name on the hub such as facebook/sam2.1-hiera-tiny (some ask for a "
                       "licence first), or a folder with config.json, the processor's "
                       "configuration and model.safetensors") from error
