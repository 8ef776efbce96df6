"""Cross-modal prototype alignment (CMPA; SSR, AAAI 2026, eqs. 2, 3 and 6).

Two stacks of Linear, BatchNorm and ReLU map patch embeddings and text prototypes into a space of
their own: v' = ISA(v), t' = TSA(t). With f the mean of v' in a region, weighted by its CAM,

    P_I = K-means of all f,   P_T = K-means of all t',   K the number of classes
    S   = v'·P_T / τ,         L = −mean log( exp S⁺ / (exp S⁺ + Σ exp S⁻) )

and the same from t' to P_I. S⁺ belongs to the cluster that a patch's region is in. Vectors are
L2-normed, so S is a cosine over τ.

There are only as many t' as rows of text, so K-means leaves them as they are: P_T = t'. K-means of
the regions starts at the means of the tagged classes, so that cluster c is class c's.

After training, BatchNorm is an affine map, which `AlignedSpace` folds into the linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.classes import BACKGROUND
from vpltool.core.distributed import Losses
from vpltool.core.prototypes import lloyd
from vpltool.core.vit import Head

MIN_TAU = 0.01
"""Least learned temperature, as in CLIP."""

_ENTRIES = 65536
"""Number of patches that are mapped at a time."""

_CALIBRATION = 2048
"""Regions of the draw that BatchNorm's statistics come from."""


@dataclass(frozen=True)
class Regions:
    """Pixels of many photos and their regions; all but the embeddings are on the host.

    A region is a class of a photo, or its background. Its entries are pixels with weights.
    """

    embeddings: Tensor  # L2-normed pixels (N, dim), in the number format of the networks
    pixel: Tensor  # pixel of each entry (E,); entries are sorted by region
    weight: Tensor  # weight of each entry (E,), above 0
    counts: Tensor  # number of entries of each region (R,), at least 1
    class_of: Tensor  # class of each region (R,), 0 is the background

    @cached_property
    def ends(self) -> Tensor:
        """Index of the entry after each region's last (R,)."""
        return self.counts.cumsum(0)

    @cached_property
    def totals(self) -> Tensor:
        """Running sum of the weights (E,), float64."""
        return self.weight.double().cumsum(0)

    @cached_property
    def classes(self) -> Tensor:
        """Classes that have a region (C,), ascending."""
        return self.class_of.unique()

    def means(self, space: nn.Module | None = None) -> Tensor:
        """Return the weighted mean of each region's (mapped) pixels, L2-normed (R, width)."""
        device = self.embeddings.device
        owner = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        sums: Tensor | None = None
        for part in torch.arange(len(self.pixel)).split(_ENTRIES):
            mapped = self.embeddings[self.pixel[part].to(device)]
            if space is not None:
                mapped = F.normalize(space(mapped), dim=-1)
            if sums is None:
                sums = mapped.new_zeros(len(self.counts), mapped.shape[1])
            sums.index_add_(0, owner[part].to(device),
                            mapped * self.weight[part].to(mapped)[:, None])
        assert sums is not None
        return F.normalize(sums, dim=-1)

    def draw(self, count: int, patches: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw B = `count` regions uniformly, and P = `patches` pixels of each by weight.

        Returns the pixels (B·P,) and the region of each (B·P,).
        """
        generator = torch.Generator().manual_seed(seed)
        region = torch.randint(len(self.counts), (count,), generator=generator)
        region = region.repeat_interleave(patches)
        last = self.ends[region] - 1
        first = last + 1 - self.counts[region]
        above = self.totals[last]
        below = self.totals[first] - self.weight[first].double()
        at = below + (above - below) * torch.rand(len(region), generator=generator,
                                                  dtype=torch.float64)
        entry = torch.searchsorted(self.totals, at, right=True)
        return self.pixel[entry.clamp(first, last)], region


@dataclass(frozen=True)
class AlignmentSettings:
    """Training settings of an alignment; `stages/align.py` holds the defaults and their sources."""

    iterations: int
    batch_size: int  # regions in a step
    patches: int  # pixels of each region in a step
    refresh: int  # steps between two runs of K-means
    lr: float
    weight_decay: float
    clusters: bool  # whether a region's label is its cluster's; otherwise its tag's
    seed: int


class Aligner(nn.Module):
    """Both stacks, the temperature, and the prototypes of the last K-means.

    The stacks map CLIP's joint space through `depth` layers of a width; if `shared_start`, both
    begin with the same weights. `text` is L2-normed (rows, dim), with the class of each row
    (rows,), 0 is the background.
    """

    words: Tensor
    word_class: Tensor
    labels: Tensor
    vision_prototypes: Tensor
    text_prototypes: Tensor

    def __init__(self, *, width: int, depth: int, last_relu: bool, shared_start: bool, tau: float,
                 learn_tau: bool, text: Tensor, class_index: Tensor, regions: Regions) -> None:
        super().__init__()
        self.vision, self.text = (
            make_stack(text.shape[1], width, depth, last_relu=last_relu) for _ in range(2))
        if shared_start:
            self.text.load_state_dict(self.vision.state_dict())
        self.log_tau = nn.Parameter(torch.tensor(tau).log(), requires_grad=learn_tau)
        for name, tensor in {
                "words": text, "word_class": class_index, "labels": regions.class_of.clone(),
                "vision_prototypes": torch.zeros(len(regions.classes), width),
                "text_prototypes": torch.zeros(len(text), width)}.items():
            self.register_buffer(name, tensor)

    def align_text(self, rows: Tensor) -> Tensor:
        """Map rows of text (rows, dim) to t', L2-normed (rows, width)."""
        return F.normalize(self.text(rows), dim=-1)


def make_stack(dim: int, width: int, depth: int, *, last_relu: bool) -> nn.Sequential:
    """Make `depth` layers of Linear, BatchNorm and ReLU, the last with or without ReLU.

    BatchNorm keeps the statistics of its last pass in training; see `calibrate`.
    """
    parts: list[nn.Module] = []
    for number in range(depth):
        parts += [nn.Linear(width if number else dim, width, bias=False),
                  nn.BatchNorm1d(width, momentum=1.0), nn.ReLU()]
    return nn.Sequential(*(parts if last_relu else parts[:-1]))


@torch.no_grad()
def calibrate(aligner: Aligner, regions: Regions, settings: AlignmentSettings) -> None:
    """Recompute BatchNorm's statistics over many pixels, drawn like a step's; end in `eval`."""
    pixels, _ = regions.draw(_CALIBRATION, settings.patches, settings.seed)
    aligner.train()
    aligner.vision(regions.embeddings[pixels.to(regions.embeddings.device)])
    aligner.text(aligner.words)
    aligner.eval()


@torch.no_grad()
def refresh(aligner: Aligner, regions: Regions, settings: AlignmentSettings) -> None:
    """Recompute the prototypes and the labels of the regions, by K-means over the whole split."""
    calibrate(aligner, regions, settings)
    means = regions.means(aligner.vision)
    classes, class_of = regions.classes.to(means.device), regions.class_of.to(means.device)
    centres = F.normalize(torch.stack([means[class_of == index].sum(dim=0) for index in classes]),
                          dim=-1)
    if settings.clusters:
        centres = lloyd(means, centres)
        class_of = classes[(means @ centres.T).argmax(dim=-1)]
    aligner.labels.copy_(class_of)
    aligner.vision_prototypes.copy_(centres)
    aligner.text_prototypes.copy_(aligner.align_text(aligner.words))


def contrast(queries: Tensor, labels: Tensor, keys: Tensor, key_class: Tensor, tau: Tensor
             ) -> Tensor:
    """Return the InfoNCE of queries to the keys of their class, against all others (eq. 6).

    Probabilities of several keys of a class add up. Queries without a key do not count. Queries
    (N, width) and keys (M, width) are L2-normed, with the class of each (N,) and (M,).
    """
    own = labels[:, None] == key_class
    known = own.any(dim=-1)
    logits = queries @ keys.T / tau
    # A finite value, since a row without a key would give NaN, and NaN times zero is NaN.
    positive = logits.masked_fill(~own, torch.finfo(logits.dtype).min).logsumexp(dim=-1)
    losses = logits.logsumexp(dim=-1) - positive
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def make_optimizer(aligner: Aligner, settings: AlignmentSettings) -> torch.optim.Optimizer:
    """Return AdamW; the temperature has no weight decay, which would draw it to 1."""
    groups: list[dict[str, object]] = [
        {"params": [aligner.log_tau], "weight_decay": 0.0},
        {"params": [*aligner.vision.parameters(), *aligner.text.parameters()]}]
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def train(aligner: Aligner, optimizer: torch.optim.Optimizer, regions: Regions,
          settings: AlignmentSettings, *, start: int = 0) -> Iterator[Losses]:
    """Run steps `start`, `start + 1`, …; each depends only on the seed and its number.

    The aligner is on the regions' device. After the last step, call `refresh`. Yields both losses
    of each step, from patches to P_T and from text to P_I, and the temperature.
    """
    for iteration in range(start, settings.iterations):
        if iteration % settings.refresh == 0:
            refresh(aligner, regions, settings)
        aligner.train()
        yield _step(aligner, optimizer, regions, settings, iteration)


def _step(aligner: Aligner, optimizer: torch.optim.Optimizer, regions: Regions,
          settings: AlignmentSettings, iteration: int) -> Losses:
    device = regions.embeddings.device
    # Not the seeds of `calibrate`, which is the draw before the first.
    pixels, region = regions.draw(settings.batch_size, settings.patches,
                                  settings.seed * 1_000_003 + iteration + 1)
    patches = F.normalize(aligner.vision(regions.embeddings[pixels.to(device)]), dim=-1)
    words = aligner.align_text(aligner.words)
    tau = aligner.log_tau.exp()
    vision = contrast(patches, aligner.labels[region.to(device)], aligner.text_prototypes,
                      aligner.word_class, tau)
    text = contrast(words, aligner.word_class, aligner.vision_prototypes,
                    regions.classes.to(device), tau)
    optimizer.zero_grad(set_to_none=True)
    ((vision + text) / 2).backward()
    optimizer.step()
    with torch.no_grad():
        aligner.log_tau.clamp_(min=torch.tensor(MIN_TAU).log().item())
    return vision.detach(), text.detach(), tau.detach()


def class_accuracy(features: Tensor, class_of: Tensor, rows: Tensor, class_index: Tensor) -> float:
    """Return the share of regions (R, dim) whose nearest class row is of their own class."""
    named = class_index != BACKGROUND
    nearest = class_index[named][(features @ rows[named].T).argmax(dim=-1)]
    return float((nearest == class_of).float().mean())


class AlignedSpace(nn.Module):
    """The map from CLIP's joint space into an aligned space: linear layers with ReLU between.

    The weights of the first layer are (width, dim), of the further ones (depth − 1, width, width),
    the biases of all (depth, width). `last_relu`: whether the last layer has a ReLU too.
    """

    first: Tensor
    further: Tensor
    bias: Tensor

    def __init__(self, first: Tensor, further: Tensor, bias: Tensor, *, last_relu: bool) -> None:
        super().__init__()
        for name, tensor in (("first", first), ("further", further), ("bias", bias)):
            self.register_buffer(name, tensor)
        self.last_relu = last_relu

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], last_relu: bool) -> AlignedSpace:
        """Rebuild the map from its `tensors`."""
        return cls(tensors["space_first"], tensors["space_further"], tensors["space_bias"],
                   last_relu=last_relu)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the map in a file of prototypes."""
        return {f"space_{name}": tensor.cpu() for name, tensor in self.state_dict().items()}

    @classmethod
    def folded(cls, stack: nn.Sequential) -> AlignedSpace:
        """Fold a stack's BatchNorm, with its running statistics, into its linear layers."""
        weights, biases = [], []
        parts: list[Any] = [part for part in stack if not isinstance(part, nn.ReLU)]
        for linear, norm in zip(parts[::2], parts[1::2], strict=True):
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weights.append((scale[:, None] * linear.weight.double()).detach().float())
            biases.append((norm.bias.double() - scale * norm.running_mean.double()).detach()
                          .float())
        width = len(biases[0])
        further = torch.stack(weights[1:]) if len(weights) > 1 else weights[0].new_zeros(
            0, width, width)
        return cls(weights[0], further, torch.stack(biases),
                   last_relu=isinstance(stack[-1], nn.ReLU))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map L2-normed vectors (..., dim) to L2-normed ones (..., width)."""
        vectors = F.linear(vectors, self.first, self.bias[0])
        for weight, bias in zip(self.further, self.bias[1:], strict=True):
            vectors = F.linear(vectors.relu(), weight, bias)
        return F.normalize(vectors.relu() if self.last_relu else vectors, dim=-1)


class AlignedHead(Head):
    """The end of CLIP, followed by the map into an aligned space.

    A photo is pooled there too: its vector is the mean of its patches' v', like a region's.
    """

    space: AlignedSpace

    @classmethod
    def of(cls, head: Head, space: AlignedSpace) -> AlignedHead:
        """Put the map after a head; the head is left as it is."""
        made = cls(head.block.shape, **{key: value for key, value in head.config.items()
                                        if key != "shape"})
        made.load_state_dict(head.state_dict())
        made.space = space
        return made.to(next(head.parameters())).requires_grad_(False)

    def patch_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's output (B, N, width) to L2-normed aligned vectors (B, N, dim)."""
        aligned: Tensor = self.space(super().patch_embeddings(tokens))
        return aligned

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool the last block's output (B, N, width) to L2-normed (B, dim): the patches' mean."""
        patches = self.patch_embeddings(tokens[:, self.prefix :])
        return F.normalize(patches.mean(dim=1), dim=-1)
