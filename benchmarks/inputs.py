"""What methods are given to be measured: random tensors of ViT-B/16's sizes.

A photo has 512×384 pixels, two tags and a grid of 24×32 patches. Time depends little on the values:
photo and maps are drawn, since superpixels, CRF and boxes look at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stages import Bench
from torch import Tensor
from world import GRAIN, save_model

from vpltool.clip.load import load_clip
from vpltool.core.phase_one import Pixels
from vpltool.core.segmenter import Decoder
from vpltool.core.vit import VisionTower
from vpltool.demo.scenes import draw_scene
from vpltool.methods.inputs import ScoredPhoto, SegmenterParts
from vpltool.methods.segmenters import weclip
from vpltool.parallel.device import dtype_of

TAGS = (3, 7)
CLASSES, WORDS = 20, 25
"""Rows of the text prototypes: VOC's classes, and words of the background."""


class Inputs:
    """What methods are given; each part is made once, where it is asked for first."""

    def __init__(self, bench: Bench) -> None:
        toy = bench.sizes.data == "toy"
        self.bench, self.device = bench, bench.device
        self.grid = (4, 6) if toy else (24, 32)
        self.batch_size = bench.sizes.batch_size
        self.photos, self.steps = (4, 2) if toy else (64, 100)
        self.bank = 200 if toy else 50_000
        self.dtype = dtype_of(bench.precision)

    @cached_property
    def vision(self) -> VisionTower:
        """A tower with random weights."""
        folder, name = self.bench.folder / "methods-clip", self.bench.sizes.model
        save_model(folder, name)
        return load_clip(name, str(folder), self.device).vision.to(self.dtype)

    @cached_property
    def photo(self) -> np.ndarray[Any, Any]:
        """A drawn photo with grain (H, W, 3), for superpixels and CRF."""
        height, width = (side * self.vision.patch for side in self.grid)
        image = draw_scene(0, 0, (height, width)).image
        grain = np.random.default_rng(0).normal(0, GRAIN, image.shape)
        return (image + grain).clip(0, 255).astype(np.uint8)

    @cached_property
    def pixels(self) -> Tensor:
        """A batch of photos, normalised (B, 3, H, W)."""
        shown = torch.from_numpy(self.photo).permute(2, 0, 1) / 127.5 - 1
        return torch.stack([shown] * self.batch_size).to(self.device, self.dtype)

    @cached_property
    def stored(self) -> dict[str, Tensor]:
        """Features of a photo as files hold them, in half precision."""
        count, vision = self.grid[0] * self.grid[1], self.vision
        made = {
            "tokens": torch.randn(vision.head.prefix + count, vision.width),
            "patches": _units(count, self.dim),
            "layers": torch.randn(vision.depth - 1, count, vision.width),
            "attention": _attention(count), "attentions": _attention(8, count),
            "second_patches": _units(count, 384), "second_attention": _attention(count)}
        return {name: tensor.half().to(self.device) for name, tensor in made.items()}

    @property
    def dim(self) -> int:
        """Of the joint space."""
        return int(self.vision.head.config["dim"])

    def batch(self, reads: Sequence[str]) -> dict[str, Tensor]:
        """A batch of what a method reads, in the number format that its stage moves it to."""
        dtype = self.dtype if "head" in reads else torch.float32
        return {name: torch.stack([tensor] * self.batch_size).to(dtype)
                for name, tensor in self.stored.items() if name in reads}

    @cached_property
    def cams(self) -> Tensor:
        """Smooth maps of two tags (2, h, w), half precision."""
        rough = torch.rand(1, len(TAGS), 5, 6, generator=torch.Generator().manual_seed(0))
        maps = F.interpolate(rough, self.grid, mode="bicubic")[0].clamp(0, 1)
        return (maps / maps.amax((1, 2), keepdim=True)).half().to(self.device)

    @cached_property
    def scored(self) -> ScoredPhoto:
        """The photo with the scores of background and tags (3, H, W)."""
        maps = F.interpolate(self.cams[None].float().cpu(), self.photo.shape[:2], mode="bilinear")
        scores = torch.cat([1 - maps.amax(1, keepdim=True), maps], dim=1)
        return ScoredPhoto(self.photo, scores[0].numpy())

    def rows(self, name: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Prototypes, their classes, and what else is known of each row.

        `text`; `several` and `context`, as cpal and lpcam have them; and banks: `regions` of all
        photos of VOC, `patches` of some. All have the `scale` and `bias` of a discriminant's.
        """
        classes, words = torch.arange(1, CLASSES + 1), torch.zeros(WORDS, dtype=torch.long)
        around = torch.zeros(0, dtype=torch.long)
        if name in ("regions", "patches"):
            count = min(self.bank, 26_500) if name == "regions" else self.bank
            index = torch.randint(1, CLASSES + 1, (count,)) * (torch.rand(count) > 0.5)
        else:
            each = {"text": 1, "several": 8, "context": 12}[name]
            around = classes.repeat_interleave(12) if name == "context" else around
            index = torch.cat([classes.repeat_interleave(each), words, torch.zeros_like(around)])
        context_of = torch.zeros_like(index)
        context_of[len(index) - len(around):] = around
        beside = {"context_of": context_of, "photo_of": torch.arange(len(index)) * 2 // 5,
                  "scale": torch.full((len(index),), 20.0), "bias": torch.zeros(len(index))}
        return (_units(len(index), self.dim).to(self.device), index.to(self.device),
                {key: tensor.to(self.device) for key, tensor in beside.items()})

    @cached_property
    def pool(self) -> Pixels:
        """Pixels of many photos: seeds of two tags each, background, and no seeds."""
        each = self.grid[0] * self.grid[1]
        tags = [torch.randperm(CLASSES)[:2] + 1 for _ in range(self.photos)]
        choices = torch.stack([torch.tensor([-1, 0, *own.tolist()]) for own in tags])
        photo_of = torch.arange(self.photos).repeat_interleave(each)
        labels = choices[photo_of, torch.randint(4, photo_of.shape)]
        return Pixels(_units(len(labels), self.dim).to(self.device), photo_of.to(self.device),
                      labels.to(self.device), [own.to(self.device) for own in tags])

    @cached_property
    def decoder(self) -> Decoder:
        """WeCLIP's, untrained."""
        parts = SegmenterParts(tuple(range(self.vision.depth - 1)), self.vision.width,
                               *self.rows("text")[:2])
        return weclip.build(parts, weclip.Settings()).eval().to(self.device)


def _units(count: int, dim: int) -> Tensor:
    return F.normalize(torch.randn(count, dim), dim=-1)


def _attention(*shape: int) -> Tensor:
    return (2 * torch.randn(*shape, shape[-1])).softmax(dim=-1)
