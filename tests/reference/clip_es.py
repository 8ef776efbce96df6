"""CLIP-ES (CVPR 2023): one photo, one class at a time, autograd through the whole tower.

open_clip's own modules are run, every n × n matrix is formed, every box is searched. Numbers keep
the precision of the model that is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

TEMPLATE = "a clean origami {}."
SCALE = 100.0  # of the logits: CLIP's own, after training
LAST_BLOCKS = 8
SINKHORN_ROUNDS = 3
LAMBDA = {"voc": 0.4, "coco": 0.7}
CONFIDENCE = 0.95
CRF = {"smooth_sxy": 1, "smooth_weight": 3, "bilateral_sxy": 67, "bilateral_srgb": 3,
       "bilateral_weight": 4, "iterations": 10}
MEAN_BGR = (104.008, 116.669, 122.675)


def preprocess(path: Path, patch: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Each side up to a multiple of the patch, PIL's bicubic, normalised: (1, 3, H, W)."""
    photo = Image.open(path).convert("RGB")
    width, height = (math.ceil(side / patch) * patch for side in photo.size)
    levels = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    channels = [(levels[..., c] / 255 - mean[c]) / std[c] for c in range(3)]
    return torch.from_numpy(np.stack(channels)[None].astype(np.float32))


def text_rows(model: Any, tokenizer: Any, words: Sequence[str],
              templates: Sequence[str] = (TEMPLATE,)) -> Tensor:
    """A unit vector a word: the mean of its prompts' unit vectors, put back on the sphere."""
    rows = []
    with torch.no_grad():
        for word in words:
            vectors = [model.encode_text(tokenizer([template.format(word)]))[0]
                       for template in templates]
            mean = torch.stack([vector / vector.norm() for vector in vectors]).mean(dim=0)
            rows.append(mean / mean.norm())
    return torch.stack(rows)


def linear(into: int, out_of: int) -> Tensor:
    """Matrix of a bilinear resize along one axis: half-pixel centres, held at the border."""
    matrix = torch.zeros(into, out_of, dtype=torch.double)
    for place in range(into):
        at = min(max((place + 0.5) * out_of / into - 0.5, 0.0), out_of - 1.0)
        below = min(int(at), out_of - 1)
        above = min(below + 1, out_of - 1)
        matrix[place, below] += 1 - (at - below)
        matrix[place, above] += at - below
    return matrix


def to_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (…, h, w) to (…, H, W)."""
    rows, columns = linear(size[0], maps.shape[-2]), linear(size[1], maps.shape[-1])
    return (rows @ maps.double() @ columns.T).to(maps.dtype)


def positions(visual: Any, grid: tuple[int, int]) -> Tensor:
    """The class token's row as it is, the patches' rows resized to the grid: (1 + h·w, width)."""
    table = visual.positional_embedding.detach()
    rows, columns = visual.grid_size
    patches = table[1:].T.reshape(-1, rows, columns)
    return torch.cat([table[:1], to_size(patches, grid).flatten(1).T])


def embed(visual: Any, pixels: Tensor) -> Tensor:
    """Tokens before the first block (1, 1 + h·w, width)."""
    patches = visual.conv1(pixels)
    grid = (patches.shape[2], patches.shape[3])
    x = torch.cat([visual.class_embedding.view(1, 1, -1), patches.flatten(2).transpose(1, 2)], 1)
    return visual.ln_pre(x + positions(visual, grid))


def attention_maps(visual: Any, pixels: Tensor) -> list[Tensor]:
    """Head-averaged attention of each block (1 + h·w, 1 + h·w)."""
    maps = []
    with torch.no_grad():
        x = embed(visual, pixels)
        for block in visual.transformer.resblocks:
            normed = block.ln_1(x)
            maps.append(block.attn(normed, normed, normed, need_weights=True)[1][0])
            x = block(x)
    return maps


def pooled(visual: Any, x: Tensor) -> Tensor:
    """The mean of the patch tokens in place of the class token, projected: unit vectors (B, dim).

    CLIP-ES has ViT-B/16 alone, where ln_post comes first. A tower that averages before ln_post does
    so here too; one with an attention pooler sees each patch alone.
    """
    patches = x[:, 1:]
    if visual.attn_pool is not None:
        patches = torch.cat([visual.attn_pool(patches[:, place : place + 1])
                             for place in range(patches.shape[1])], dim=1)
    if visual.attn_pool is None and visual.final_ln_after_pool:
        mean = visual.ln_post(patches.mean(dim=1))
    else:
        mean = visual.ln_post(patches).mean(dim=1)
    joint = mean @ visual.proj
    return joint / joint.norm(dim=-1, keepdim=True)


def probability(logits: Tensor, own: Sequence[int], *, literal: bool) -> Tensor:
    """Softmax score of a class; its own rows are summed.

    Args:
        logits: of all rows.
        own: places of the class's.
        literal: by a softmax, as the peer has it: the gradient's factor 1 − y is then what rounding
            leaves of a difference. Else by 1 / (1 + Σ others / Σ own): the same number, whose
            gradient keeps its digits however near 1 it is.
    """
    if literal:
        return logits.softmax(dim=0)[list(own)].sum()
    mine = torch.zeros_like(logits, dtype=torch.bool)
    mine[list(own)] = True
    return 1 / (1 + (logits[~mine].logsumexp(0) - logits[mine].logsumexp(0)).exp())


def gradcam(visual: Any, pixels: Tensor, rows: Tensor, own: Sequence[int],
            scale: float = SCALE, *, literal: bool = False) -> Tensor:
    """Softmax-GradCAM of one class of one photo (h, w), in [0, 1].

    Args:
        visual: open_clip's vision tower.
        pixels: the photo (1, 3, H, W).
        rows: text of the classes that the photo shows, then of the background words.
        own: places of the class's own rows among them; CLIP-ES has one row a class.
        scale: of the logits.
        literal: see `probability`.
    """
    kept: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    *frozen, last = visual.transformer.resblocks
    with torch.no_grad():
        x = embed(visual, pixels)
        for block in frozen:
            x = block(x)
    hook = last.ln_1.register_forward_hook(keep)
    x = last(x)
    hook.remove()
    logits = scale * pooled(visual, x)[0] @ rows.T
    probability(logits, own, literal=literal).backward()
    activation = kept[0].detach()[0, 1:]
    gradient = kept[0].grad
    assert gradient is not None
    visual.zero_grad()
    weights = gradient[0, 1:].mean(dim=0)
    height, width = (side // patch for side, patch in zip(pixels.shape[2:], visual.patch_size,
                                                          strict=True))
    cam = (activation @ weights).clamp_min(0).view(height, width)
    # Once for the layer, once for the mean over the layers, of which there is one.
    return min_max(min_max(cam))


def min_max(cam: Tensor) -> Tensor:
    """(x − min) / (1e-7 + max(x − min))."""
    shifted = cam - cam.min()
    return shifted / (1e-7 + shifted.max())


def affinity(maps: Sequence[Tensor], last: int = LAST_BLOCKS) -> Tensor:
    """Transition matrix T (h·w, h·w) of the last blocks' attention, the class token cut off."""
    matrix = torch.stack(list(maps[-last:])).mean(dim=0)[1:, 1:]
    return transition(matrix)


def transition(matrix: Tensor) -> Tensor:
    """Sinkhorn, the mean with the transpose, the square."""
    for _ in range(SINKHORN_ROUNDS):
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    matrix = (matrix + matrix.T) / 2
    return matrix @ matrix


def components(bright: Sequence[Sequence[bool]]) -> Iterator[list[tuple[int, int]]]:
    """Flood fill over eight neighbours."""
    left = {(y, x) for y, row in enumerate(bright) for x, lit in enumerate(row) if lit}
    while left:
        waiting, found = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            found.append((y, x))
            for neighbour in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbour in left:
                    left.remove(neighbour)
                    waiting.append(neighbour)
        yield found


def boxes(cam: Tensor, threshold: float, *, exclusive: bool = True) -> Tensor:
    """Union of the boxes of what a CAM (h, w) shows, 0 or 1.

    Args:
        cam: as `gradcam` gives it.
        threshold: λ.
        exclusive: CLIP-ES clips a box's end to the last row and column and then leaves that one
            out; False: boxes reach the border.
    """
    levels = (cam.numpy() * 255).astype(np.uint8)
    least = int(threshold * int(levels.max()))
    height, width = levels.shape
    mask = torch.zeros_like(cam)
    for part in components((levels > least).tolist()):
        top, left = min(y for y, _ in part), min(x for _, x in part)
        bottom, right = max(y for y, _ in part) + 1, max(x for _, x in part) + 1
        if exclusive:
            bottom, right = min(bottom, height - 1), min(right, width - 1)
        mask[top:bottom, left:right] = 1
    return mask


def spread(cam: Tensor, matrix: Tensor, mask: Tensor) -> Tensor:
    """(T ⊙ mask as a column mask) · cam: (h, w), before min-max."""
    return ((matrix * mask.flatten()[None, :]) @ cam.flatten()).view_as(cam)


def refine(cam: Tensor, matrix: Tensor, threshold: float, *, exclusive: bool = True) -> Tensor:
    """Class-aware attention affinity of one CAM (h, w), in [0, 1]."""
    return min_max(spread(cam, matrix, boxes(cam, threshold, exclusive=exclusive)))


def with_background(cams: Tensor, alpha: float = 1.0) -> Tensor:
    """(1 − max)^α before the classes (1 + K, H, W)."""
    return torch.cat([(1 - cams.max(dim=0, keepdim=True).values) ** alpha, cams])


def wrap(photo: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The image that the CRF sees: BGR, less its mean, cut to a byte: what is negative wraps."""
    wrapped = np.empty_like(photo)
    for place, mean in enumerate(MEAN_BGR):
        for level in range(256):
            wrapped[..., place][photo[..., 2 - place] == level] = int(level - mean) % 256
    return wrapped


def crf(photo: np.ndarray[Any, Any], scores: Tensor, parameters: dict[str, float],
        ) -> np.ndarray[Any, Any]:
    """Marginals (L, H, W) by pydensecrf, of scores that need not sum to 1."""
    from pydensecrf import densecrf

    # float16 scores, as CLIP-ES stores them, have float16 logarithms.
    labels, height, width = scores.shape
    unary = -np.log(np.clip(scores.numpy(), 1e-5, 1.0)).reshape(labels, -1).astype(np.float32)
    model = densecrf.DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=parameters["smooth_sxy"], compat=parameters["smooth_weight"])
    model.addPairwiseBilateral(
        sxy=parameters["bilateral_sxy"], srgb=parameters["bilateral_srgb"],
        rgbim=np.array(photo, order="C"), compat=parameters["bilateral_weight"])
    return np.array(model.inference(int(parameters["iterations"]))).reshape(scores.shape)


def labels(marginals: np.ndarray[Any, Any], classes: Sequence[int],
           confidence: float = 0.0) -> np.ndarray[Any, Any]:
    """The likeliest class of each pixel; 255 where it is less sure than `confidence`."""
    found = np.array([0, *classes], np.uint8)[marginals.argmax(axis=0)]
    found[marginals.max(axis=0) < confidence] = 255
    return found
