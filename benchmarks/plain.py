"""The plain way of each stage, as the peers' repositories have it: what ours is compared with.

Float32 on a CPU and half precision on a GPU, open_clip's own modules, one photo at a time in one
process; per class one forward and backward pass of the last block, and the n×n affinity formed and
squared; the CRF over all classes in one thread; 3,000 gradient steps over all pixels; an encoder
that runs in every iteration of the decoder, and labels made anew there. Plain, not crippled: each
does once for a photo what these do once, and nothing is moved between devices on the way.

The CRF over all classes in one thread is AFA's and WeCLIP's. CLIP-ES takes the background and the
classes present, and all cores; that way is here, too, and compared beside it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vpltool.clip.catalogue import import_open_clip
from vpltool.core.affinity import box_mask
from vpltool.core.crf import CrfKernels, mean_field, with_background
from vpltool.core.grids import min_max
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.core.segmenter import Decoder
from vpltool.core.training import (
    CropBatch,
    TrainingSettings,
    choose_window,
    chosen_photos,
    generator_of,
    labels_at,
    make_optimizer,
    step_losses,
)

LABELS = 21
"""VOC's: the CRF of AFA and WeCLIP takes all of them, whether a photo shows them or not."""


@dataclass(frozen=True)
class Encoder:
    """open_clip's vision tower, and the mean and deviation of its input."""

    visual: Any
    mean: Sequence[float]
    std: Sequence[float]

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.visual.patch_size[0])

    def pixels(self, photo: npt.NDArray[np.uint8], scale: float = 1.0) -> Tensor:
        """Resize a photo and normalise it (3, H, W)."""
        size = fit_size((photo.shape[0], photo.shape[1]), self.patch, scale=scale)
        return to_pixels(photo, size, self.mean, self.std)


def load(folder: Path, device: torch.device) -> Encoder:
    """Load the model as open_clip gives it; in half precision on a GPU, as CLIP's own loader."""
    model, _, preprocess = import_open_clip().create_model_and_transforms(f"local-dir:{folder}")
    normalise = preprocess.transforms[-1]
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    visual = model.eval().requires_grad_(False).visual.to(device, dtype)
    return Encoder(visual, normalise.mean, normalise.std)


@dataclass(frozen=True)
class Encoded:
    """Output of all blocks but the last, and each block's head-averaged attention, CLS removed."""

    layers: list[Tensor]
    maps: list[Tensor]
    grid: tuple[int, int]


def block(layer: Any, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
    """One block with ln_1's output given; also its attention (B, n, n)."""
    mixed, weights = layer.attn(normed, normed, normed, need_weights=True)
    x = x + mixed
    return x + layer.mlp(layer.ln_2(x)), weights[:, 1:, 1:]


@torch.no_grad()
def encode(encoder: Encoder, pixels: Tensor) -> Encoded:
    """Run all blocks but the last over pixels (B, 3, H, W)."""
    visual = encoder.visual
    pixels = pixels.to(visual.conv1.weight)
    grid = (pixels.shape[2] // encoder.patch, pixels.shape[3] // encoder.patch)
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    table = visual.positional_embedding
    spread = F.interpolate(table[1:].T.reshape(1, -1, *visual.grid_size), grid, mode="bilinear")
    table = torch.cat([table[:1], spread.flatten(2)[0].T])
    cls = visual.class_embedding.expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], 1) + table)
    layers, maps = [], []
    for layer in visual.transformer.resblocks[:-1]:
        x, weights = block(layer, x, layer.ln_1(x))
        layers.append(x)
        maps.append(weights)
    return Encoded(layers, maps, grid)


def refined_cams(encoder: Encoder, x: Tensor, maps: Sequence[Tensor], grid: tuple[int, int],
                 tags: Sequence[int], rows: Tensor, index: Tensor) -> Tensor:
    """CLIP-ES's refined CAM of each tag of one photo (K, h, w), class by class.

    Args:
        encoder: the tower.
        x: input of the last block (1, 1+n, width).
        maps: attention of the blocks before (n, n).
        grid: (h, w).
        tags: class indices.
        rows: prototypes (rows, dim).
        index: their classes (rows,).
    """
    visual = encoder.visual
    last = visual.transformer.resblocks[-1]
    allowed = torch.isin(index, torch.tensor([0, *tags], device=index.device))
    refined = []
    for wanted in tags:
        normed = last.ln_1(x).detach().requires_grad_(True)
        out, weights = block(last, x, normed)
        pooled = F.normalize(visual.ln_post(out[:, 1:]).mean(dim=1) @ visual.proj, dim=-1)
        logits = (pooled @ rows[allowed].to(pooled).T)[0].float() / 0.01
        position = index[allowed].tolist().index(wanted)
        others = torch.cat([logits[:position], logits[position + 1 :]])
        (gradient,) = torch.autograd.grad(logits[position] - others.logsumexp(0), normed)
        channels = gradient[0, 1:].mean(dim=0)
        cam = min_max((normed[0, 1:].detach() @ channels).relu().view(grid).float())
        affinity = torch.stack([*maps[-7:], weights[0].detach()]).mean(dim=0).float()
        for _ in range(3):
            affinity = affinity / affinity.sum(dim=0, keepdim=True)
            affinity = affinity / affinity.sum(dim=1, keepdim=True)
        affinity = (affinity + affinity.T) / 2
        transition = affinity @ affinity
        mask = box_mask(cam[None], 0.4).flatten().float()
        refined.append(min_max(((transition * mask) @ cam.flatten()).view(grid)))
    return torch.stack(refined)


def cams_of_photos(encoder: Encoder, photos: dict[str, Path], tags: dict[str, list[int]],
                   rows: Tensor, index: Tensor, out: Path) -> dict[str, Tensor]:
    """Refined CAMs (K, h, w) of each photo, written as CLIP-ES does: at the photo's size, half."""
    out.mkdir(exist_ok=True)
    result = {}
    for key, path in photos.items():
        photo = read_photo(path)
        seen = encode(encoder, encoder.pixels(photo)[None])
        maps = [weights[0] for weights in seen.maps]
        cams = refined_cams(encoder, seen.layers[-1], maps, seen.grid, tags[key], rows, index)
        full = F.interpolate(cams[None], photo.shape[:2], mode="bilinear")[0]
        np.save(out / f"{key}.npy", full.half().cpu().numpy())
        result[key] = cams.cpu()
    return result


def gradient_steps(pixels: Tensor, text: Tensor, allowed: Tensor, steps: int, *, lr: float = 10.0,
                   tau_t: float = 0.01, tau_i: float = 0.03) -> Tensor:
    """VPL's phase 1 by InMaP's projected gradient descent over all pixels at once.

    Args:
        pixels: X, L2-normed (N, dim).
        text: Z (rows, dim).
        allowed: rows that P' may use at each pixel (N, rows).
        steps: T_w.
        lr: α.
        tau_t: τ_T.
        tau_i: τ_I.
    """
    targets = (pixels @ text.T / tau_t).masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    base, rows = targets.T @ pixels, text.clone()
    previous = float("inf")
    for _ in range(steps):
        slope = ((pixels @ rows.T / tau_i).softmax(dim=-1).T @ pixels - base) / (
            len(pixels) * tau_i)
        norm = float(slope.norm())
        lr = lr / 2 if norm > previous else lr
        previous = norm
        rows = F.normalize(rows - lr * slope, dim=-1)
    return rows


@dataclass(frozen=True)
class CrfJob:
    """A photo for the CRF, as it is sent to a process.

    Args:
        photo: the photo.
        maps: its CAMs (K, h, w).
        classes: their class indices, K of them.
        settings: of the CRF.
        backend: `pydensecrf`, or `torch` where that is not installed.
        labels: over so many labels; 0: over the background and the classes present, as CLIP-ES.
        out: folder for the PNG.
    """

    photo: Path
    maps: npt.NDArray[np.floating[Any]]
    classes: Sequence[int]
    settings: CrfKernels
    backend: str
    labels: int
    out: Path


def crf_input(job: CrfJob) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Read a photo (H, W, 3), and scale its scores up to its size (labels, H, W)."""
    photo = read_photo(job.photo)
    maps = torch.from_numpy(job.maps)[None].float()
    scores = with_background(F.interpolate(maps, photo.shape[:2], mode="bilinear")[0])
    if job.labels:
        present = scores
        scores = torch.zeros(job.labels, *photo.shape[:2])
        scores[[0, *job.classes]] = present
    return photo, scores.numpy()


def crf_of_photo(job: CrfJob) -> None:
    """Write the mask of a photo."""
    photo, scores = crf_input(job)
    best = mean_field(photo, scores, job.settings, backend=job.backend).argmax(axis=0)
    owner = np.arange(job.labels) if job.labels else np.array([0, *job.classes])
    save_labels(owner[best].astype(np.uint8), job.out / f"{job.photo.stem}.png")


def crf_of_photos(jobs: Sequence[CrfJob], pool: Pool | None = None) -> None:
    """Masks of photos: one after another in one thread, or in a pool's processes."""
    if pool is not None:
        for _ in pool.imap_unordered(crf_of_photo, jobs):
            pass
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            crf_of_photo(job)
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def one_thread_workers(count: int) -> Iterator[Pool | None]:
    """Start processes of one thread each, and wait until all of them are there; None below two."""
    if count < 2:
        yield None
        return
    # Forking a process that has run torch can hang in its thread pool.
    context = multiprocessing.get_context("spawn")
    there = context.Barrier(count + 1)
    with context.Pool(count, initializer=_one_thread, initargs=(there,)) as pool:
        there.wait(timeout=300)
        yield pool


def _one_thread(there: Any) -> None:
    torch.set_num_threads(1)
    there.wait()


def save_labels(labels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write labels (H, W) as a greyscale PNG."""
    Image.fromarray(labels).save(path)


@dataclass(frozen=True)
class Lesson:
    """What the decoder's plain training needs: photos, tags, prototypes and their classes."""

    encoder: Encoder
    photos: dict[str, Path]
    tags: dict[str, list[int]]
    rows: Tensor
    index: Tensor


def train_decoder(lesson: Lesson, decoder: Decoder, settings: TrainingSettings,
                  layers: Sequence[int]) -> None:
    """Train as WeCLIP does, but for its PAR: crops are encoded, and labels made, at every step."""
    optimizer = make_optimizer(decoder, settings)
    decoder.train()
    keys = list(lesson.photos)
    for iteration in range(settings.iterations):
        chosen = [keys[position] for position in chosen_photos(len(keys), settings, iteration)]
        batch = _crops(lesson, chosen, settings, iteration, layers)
        mask, contrast = step_losses(decoder, batch.to(lesson.rows.device), settings)
        optimizer.zero_grad(set_to_none=True)
        (mask + contrast).backward()
        optimizer.step()


def _crops(lesson: Lesson, keys: Sequence[str], settings: TrainingSettings, iteration: int,
           layers: Sequence[int]) -> CropBatch:
    """Cut, encode and label a batch."""
    encoder, rng = lesson.encoder, generator_of(settings, iteration)
    crops, valid = [], []
    for key in keys:
        image = encoder.pixels(read_photo(lesson.photos[key]), scale=float(rng.uniform(0.5, 2.0)))
        grid = (image.shape[1] // encoder.patch, image.shape[2] // encoder.patch)
        window = choose_window(grid, settings.crop, rng)
        crops.append(window.cut(image, encoder.patch))
        valid.append(window.valid())
    seen = encode(encoder, torch.stack(crops))
    labels = []
    for position, key in enumerate(keys):
        cams = refined_cams(encoder, seen.layers[-1][position : position + 1],
                            [weights[position] for weights in seen.maps], seen.grid,
                            lesson.tags[key], lesson.rows, lesson.index)
        scores = with_background(F.interpolate(
            cams[None], (settings.crop * encoder.patch,) * 2, mode="bilinear")[0])
        owner = torch.tensor([0, *lesson.tags[key]])
        labels.append(labels_at(owner[scores.argmax(dim=0).cpu()].to(torch.uint8).numpy(),
                                seen.grid))
    stored, patches = _decoder_input(encoder, seen, layers, residual=False)
    tags = [torch.tensor(lesson.tags[key]) for key in keys]
    return CropBatch(stored, patches, torch.stack(labels), torch.stack(valid), tags)


def _decoder_input(encoder: Encoder, seen: Encoded, layers: Sequence[int], *, residual: bool
                   ) -> tuple[Tensor, Tensor | None]:
    """Layers (B, L, n, width), and patch embeddings (B, n, dim) for a residual decoder."""
    stored = torch.stack([seen.layers[layer][:, 1:] for layer in layers], dim=1).float()
    if not residual:
        return stored, None
    x, visual = seen.layers[-1], encoder.visual
    last = visual.transformer.resblocks[-1]
    x = block(last, x, last.ln_1(x))[0]
    return stored, F.normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1).float()


@torch.no_grad()
def predict(encoder: Encoder, decoder: Decoder, photos: Iterable[Path], scales: Sequence[float],
            out: Path, *, mirror: bool = True) -> None:
    """Masks of photos, a photo, scale and mirrored copy at a time; classes compete at full size."""
    out.mkdir(exist_ok=True)
    for path in photos:
        photo = read_photo(path)
        total: Tensor | None = None
        for scale in scales:
            image = encoder.pixels(photo, scale=scale)[None]
            for mirrored in (False, True) if mirror else (False,):
                seen = encode(encoder, image.flip(3) if mirrored else image)
                layers, patches = _decoder_input(encoder, seen, decoder.shape.layers,
                                                 residual=decoder.shape.residual)
                logits = decoder.logits(decoder.embeddings(layers, patches, seen.grid), seen.grid)
                full = F.interpolate(logits, photo.shape[:2], mode="bilinear")[0].softmax(dim=0)
                full = full.flip(2) if mirrored else full
                total = full if total is None else total + full
        assert total is not None
        save_labels(total.argmax(dim=0).to(torch.uint8).cpu().numpy(), out / f"{path.stem}.png")


def mean_iou(predictions: Sequence[Path], masks: Sequence[Path], classes: int) -> float:
    """MIoU of masks, all of them read before the first is counted, as the peers do."""
    said = [np.array(Image.open(path)) for path in predictions]
    true = [np.array(Image.open(path)) for path in masks]
    counts = np.zeros((classes, classes))
    for label, truth in zip(said, true, strict=True):
        known = truth < classes
        counts += np.bincount(classes * truth[known].astype(int) + label[known],
                              minlength=classes**2).reshape(classes, classes)
    hits = np.diag(counts)
    present = counts.sum(axis=1) > 0
    iou = hits[present] / (counts.sum(axis=1) + counts.sum(axis=0) - hits)[present]
    return float(iou.mean())
