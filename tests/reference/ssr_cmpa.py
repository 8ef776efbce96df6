"""CMPA of SSR (AAAI 2026), eqs. 2, 3 and 6, by loops; what the paper leaves open is as said below.

A stack is a list of layers; a layer a dict of `weight` (out, in), and BatchNorm's `gain` and
`shift` (out,). A region is a list of (pixel, weight), and has a class; 0 is the background.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reference import clip_es

EPS = 1e-5
LEAST_TAU = 0.01

Stack = list[dict[str, Tensor]]
Region = list[tuple[int, float]]


def unit(vector: Tensor) -> Tensor:
    """Divide by the length."""
    return vector / max(math.sqrt(float((vector * vector).sum().detach())), 1e-12)


def statistics(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of a batch (N, width)."""
    mean = columns.sum(dim=0) / len(columns)
    return mean, ((columns - mean) ** 2).sum(dim=0) / len(columns)


def forward(stack: Stack, batch: Tensor, last_relu: bool,
            kept: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """Linear, BatchNorm, ReLU, layer after layer; rows of the result have length 1.

    Args:
        stack: its layers.
        batch: (N, in).
        last_relu: whether the last layer has a ReLU.
        kept: mean and variance of each layer; None: the batch's own.
    """
    for number, layer in enumerate(stack):
        batch = batch @ layer["weight"].T
        mean, variance = statistics(batch) if kept is None else kept[number]
        batch = (batch - mean) / (variance + EPS).sqrt() * layer["gain"] + layer["shift"]
        if last_relu or number + 1 < len(stack):
            batch = torch.where(batch > 0, batch, torch.zeros_like(batch))
    lengths = (batch * batch).sum(dim=1).sqrt()
    return batch / torch.where(lengths > 1e-12, lengths, torch.ones_like(lengths))[:, None]


def collected(stack: Stack, batch: Tensor, last_relu: bool) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of each layer over a batch: what BatchNorm uses afterwards."""
    found = []
    for number, layer in enumerate(stack):
        batch = batch @ layer["weight"].T
        mean, variance = statistics(batch)
        found.append((mean.detach(), (variance * len(batch) / (len(batch) - 1)).detach()))
        batch = (batch - mean) / (variance + EPS).sqrt() * layer["gain"] + layer["shift"]
        if last_relu or number + 1 < len(stack):
            batch = torch.where(batch > 0, batch, torch.zeros_like(batch))
    return found


def region_means(mapped: Tensor, regions: list[Region]) -> Tensor:
    """f_image (eq. 2): the mean of v' with the CAM as weight."""
    means = []
    for region in regions:
        total = torch.zeros_like(mapped[0])
        for pixel, weight in region:
            total = total + weight * mapped[pixel]
        means.append(unit(total / sum(weight for _, weight in region)))
    return torch.stack(means)


def kmeans(points: Tensor, centres: Tensor, rounds: int = 25) -> Tensor:
    """Centres by cosine, from where they start; an empty cluster keeps its own."""
    for _ in range(rounds):
        members: list[list[Tensor]] = [[] for _ in centres]
        for point in points:
            cosines = [float(point @ centre) for centre in centres]
            members[cosines.index(max(cosines))].append(point)
        moved = torch.stack([unit(torch.stack(own).sum(dim=0)) if own else centre
                             for own, centre in zip(members, centres, strict=True)])
        if float((moved - centres).abs().max()) < 1e-6:
            break
        centres = moved
    return centres


def refreshed(means: Tensor, class_of: list[int], clusters: bool) -> tuple[Tensor, list[int]]:
    """P_I and the label of each region; centres start at the means of the tagged classes."""
    shown = sorted({*class_of})
    centres = torch.stack([unit(torch.stack([
        mean for mean, own in zip(means, class_of, strict=True) if own == index]).sum(dim=0))
        for index in shown])
    if not clusters:
        return centres, class_of
    centres = kmeans(means, centres)
    labels = []
    for mean in means:
        cosines = [float(mean @ centre) for centre in centres]
        labels.append(shown[cosines.index(max(cosines))])
    return centres, labels


def info_nce(queries: Tensor, labels: list[int], keys: Tensor, key_class: list[int], tau: Any
             ) -> Tensor:
    """−mean log( Σ exp S⁺ / Σ exp S ), over the queries that have a positive (eq. 6)."""
    losses = []
    for query, label in zip(queries, labels, strict=True):
        heat = [(query * key).sum() / tau for key in keys]
        own = [value for value, owner in zip(heat, key_class, strict=True) if owner == label]
        if own:
            top = max(float(value.detach()) for value in heat)
            positive = sum((value - top).exp() for value in own)
            whole = sum((value - top).exp() for value in heat)
            losses.append(-(positive / whole).log())
    return sum(losses) / len(losses)


def adamw(value: Tensor, gradient: Tensor, step: int, moments: tuple[Tensor, Tensor], lr: float,
          decay: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One step of AdamW (Loshchilov and Hutter 2019), β 0.9 and 0.999; `step` counts from 1."""
    first = 0.9 * moments[0] + 0.1 * gradient
    second = 0.999 * moments[1] + 0.001 * gradient * gradient
    value = value * (1 - lr * decay)
    value = value - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return value, (first, second)


def affine(stack: Stack, vector: Tensor, last_relu: bool, kept: list[tuple[Tensor, Tensor]]
           ) -> Tensor:
    """One vector through a stack after training, with gradients; its result has length 1."""
    for number, (layer, (mean, variance)) in enumerate(zip(stack, kept, strict=True)):
        vector = (layer["weight"] @ vector - mean) / (variance + EPS).sqrt()
        vector = vector * layer["gain"] + layer["shift"]
        if last_relu or number + 1 < len(stack):
            vector = vector.clamp_min(0)
    return vector / vector.norm()


def gradcam(visual: Any, pixels: Tensor, rows: Tensor, own: int, scale: float, mapped: Any
            ) -> Tensor:
    """CLIP-ES's GradCAM of one class of one photo (h, w), with v' for v: autograd does it all.

    The photo's vector is the mean of its patches' v'. The score is the class's logit less the
    log-sum-exp of the others.

    Args:
        visual: open_clip's vision tower, of the kind that projects class tokens.
        pixels: the photo (1, 3, H, W).
        rows: aligned text of the classes that the photo shows, then of the background words.
        own: place of the class's row among them.
        scale: of the logits.
        mapped: from a patch's unit vector in the joint space to its v'.
    """
    activations: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        activations.append(output)

    x = clip_es.embed(visual, pixels)
    hook = visual.transformer.resblocks[-1].ln_1.register_forward_hook(keep)
    for block in visual.transformer.resblocks:
        x = block(x)
    hook.remove()
    total = torch.zeros_like(rows[0])
    for token in x[0, 1:]:
        joint = visual.ln_post(token) @ visual.proj
        total = total + mapped(joint / joint.norm())
    logits = scale * rows @ (total / total.norm())
    others = torch.cat([logits[:own], logits[own + 1 :]])
    (logits[own] - others.logsumexp(dim=0)).backward()
    gradient = activations[0].grad
    assert gradient is not None
    visual.zero_grad()
    cam = activations[0].detach()[0, 1:] @ gradient[0, 1:].mean(dim=0)
    height, width = (side // patch for side, patch in zip(pixels.shape[2:], visual.patch_size,
                                                          strict=True))
    return clip_es.min_max(clip_es.min_max(cam.clamp_min(0).view(height, width)))
