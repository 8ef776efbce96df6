"""Training a segmenter: crops, augmentation, losses, and steps that depend only on their number.

So a run resumed from a checkpoint takes the same steps as an uninterrupted one. On a CPU the
networks are equal bit for bit; on a GPU they differ by rounding, since some sums have no fixed
order.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vpltool.core import segmenter
from vpltool.core.classes import BACKGROUND, IGNORE
from vpltool.core.distributed import ALONE, Group, Losses, share_losses
from vpltool.core.grids import LABELS_PER_PATCH
from vpltool.lazy import F, Image, Tensor, np, npt, torch

WARMUP = 50
"""Steps of linear warm-up, as in WeCLIP's official code."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Crops and learning rate of the training steps; a crop has `crop` patches per side.

    The learning rate rises linearly over `warmup` steps and falls as (1 − t)^power. `precision` is
    the number format of matrix products in both passes; parameters and losses are in float32.
    """

    iterations: int
    batch_size: int
    crop: int
    lr: float
    power: float
    warmup: int
    seed: int
    precision: torch.dtype


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(StepSettings):
    """Training settings of a segmenter on a frozen encoder; λ weigh the losses of `step_losses`.

    The optimizer is `sgd` (momentum 0.9, weight decay 1e-4) or `adamw` (weight decay 0.01). If
    `balanced`, background and foreground have equal weight in the cross-entropy.
    """

    optimizer: str
    balanced: bool
    lambda_ce: float
    lambda_rsc: float
    lambda_aff: float


@dataclass(frozen=True)
class CropBatch:
    """Crops of one step, with `crop` patches per side.

    Each process has `labels`, `valid` and `tags` of all crops, and the features of its own. Layers
    or patches that the network does not read are None.
    """

    layers: Tensor | None  # frozen layers (B, L, crop², width)
    patches: Tensor | None  # L2-normed patch embeddings (B, crop², dim)
    labels: Tensor  # pseudo labels (B, 4·crop, 4·crop) uint8, 255 = ignore
    valid: Tensor  # False where a patch is padding (B, crop²)
    tags: list[Tensor]  # class indices of each photo (K_i,), on the host

    def pin_memory(self) -> CropBatch:
        """Return a copy in pinned memory, for asynchronous transfer to a GPU."""
        return replace(self, **{name: part.pin_memory() for name, part in vars(self).items()
                                if hasattr(part, "pin_memory")})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> CropBatch:
        """Return a copy on a device, for `step_losses`: layers in `dtype`, patches in float32.

        `tags` is reduced to the classes in the crop's labels; this is done on the host, to avoid a
        synchronization with the GPU.
        """
        layers, patches = (
            None if frozen is None else frozen.to(device, non_blocking=True).to(kind)
            for frozen, kind in ((self.layers, dtype or torch.float32),
                                 (self.patches, torch.float32)))
        shown = [tags[labels.flatten().bincount(minlength=int(tags.max()) + 1)[tags] > 0]
                 if len(tags) else tags
                 for tags, labels in zip(self.tags, self.labels, strict=True)]
        return CropBatch(layers, patches, self.labels.to(device, non_blocking=True),
                         self.valid.to(device, non_blocking=True), shown)


def chosen_photos(count: int, settings: StepSettings, iteration: int) -> list[int]:
    """Return the indices of a step's photos; each epoch is a new permutation of all photos."""
    picked = []
    for position in range(iteration * settings.batch_size, (iteration + 1) * settings.batch_size):
        epoch, index = divmod(position, count)
        order = np.random.default_rng((settings.seed, 1, epoch)).permutation(count)
        picked.append(int(order[index]))
    return picked


def generator_of(settings: StepSettings, iteration: int) -> np.random.Generator:
    """Return the random generator of a step's augmentation."""
    return np.random.default_rng((settings.seed, 2, iteration))


@dataclass(frozen=True)
class Window:
    """A square of `side` patches in a grid (h, w), after mirroring; smaller grids are padded."""

    grid: tuple[int, int]
    side: int
    mirrored: bool
    top: int
    left: int

    def cut(self, image: Tensor, unit: int, padding: float = 0) -> Tensor:
        """Crop the window from an image with `unit` elements per patch side.

        (C, h·unit, w·unit) becomes (C, side·unit, side·unit), and with unit 1 (L, h, w, width)
        becomes (L, side, side, width).
        """
        top, left, rows, columns = self.area
        # Crop before mirroring, so that only the window is copied.
        return self.arrange(image[:, top * unit : (top + rows) * unit,
                                  left * unit : (left + columns) * unit], padding)

    @property
    def area(self) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop, in patches of the unmirrored photo."""
        rows, columns = (min(self.side, length) for length in self.grid)
        left = self.grid[1] - self.left - columns if self.mirrored else self.left
        return self.top, left, rows, columns

    def arrange(self, image: Tensor, padding: float = 0) -> Tensor:
        """Mirror and pad a cropped image, the last step of `cut`."""
        if self.mirrored:
            image = image.flip(2)
        rows, columns = self.area[2:]
        below = (self.side - rows) * image.shape[1] // rows
        right = (self.side - columns) * image.shape[2] // columns
        if below or right:
            tail = (0, 0) * (image.dim() - 3)
            image = F.pad(image, (*tail, 0, right, 0, below), value=padding)
        return image

    def cut_labels(self, labels: Tensor) -> Tensor:
        """Crop labels (4h, 4w) uint8 to (4·side, 4·side), padded with 255."""
        return self.cut(labels[None], LABELS_PER_PATCH, padding=255)[0]

    def valid(self) -> Tensor:
        """Return a mask (side²,) that is False at padding."""
        inside = torch.zeros((self.side, self.side), dtype=torch.bool)
        inside[: self.grid[0], : self.grid[1]] = True
        return inside.flatten()


def choose_window(grid: tuple[int, int], side: int, rng: np.random.Generator) -> Window:
    """Mirror at random, and choose a square of `side` patches in a grid (h, w)."""
    mirrored = bool(rng.random() < 0.5)
    top, left = (int(rng.integers(0, max(length - side, 0) + 1)) for length in grid)
    return Window(grid, side, mirrored, top, left)


def labels_at(labels: npt.NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Resample labels (H, W) to 4×4 per patch of a grid (h, w) by nearest neighbour: (4h, 4w).

    The same as torch's `nearest-exact`, without a conversion of a large photo's labels to floats.
    """
    rows, columns = (_nearest(length, patches * LABELS_PER_PATCH)
                     for length, patches in zip(labels.shape, grid, strict=True))
    taken = labels[rows[:, None], columns]
    return torch.from_numpy(taken if taken.dtype == np.uint8 else taken.astype(np.int32))


def _nearest(length: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return the nearest of `length` pixels for each of `wanted` ones, with torch's rounding."""
    centre = np.arange(wanted, dtype=np.float32) + np.float32(0.5)
    scale = np.float32(length) / np.float32(wanted)
    return np.minimum((centre * scale).astype(np.int64), length - 1)


def cut_photo(photo: npt.NDArray[np.uint8], window: Window, patch: int) -> Tensor:
    """Resize a photo to a window's grid and crop it, at the cost of the window's pixels only.

    If the window holds the whole grid, the bits equal those of `to_pixels` followed by a crop.
    Otherwise Pillow rounds at another offset, and may swap its two passes: in photographs, 1 value
    in 10,000 differs, by one level, seldom two.

    The photo is RGB (H, W, 3) of any size; `patch` is the side in pixels. Returns
    (3, side·patch, side·patch) uint8, padded with 0.
    """
    top, left, rows, columns = window.area
    above, below, first, last = _source(top, rows, window.grid[0], photo.shape[0], patch)
    before, behind, start, end = _source(left, columns, window.grid[1], photo.shape[1], patch)
    part = Image.fromarray(np.ascontiguousarray(photo[above:below, before:behind]))
    scaled = part.resize((columns * patch, rows * patch), Image.Resampling.BICUBIC,
                         box=(start, first, end, last))
    return window.arrange(torch.from_numpy(np.array(scaled)).permute(2, 0, 1)).contiguous()


def _source(start: int, count: int, whole: int, length: int, patch: int
            ) -> tuple[int, int, float, float]:
    """Locate `count` of `whole` patches along a photo's side of `length` pixels.

    Returns the range of pixels that resizing reads, and the patches' ends relative to its start.
    """
    low, high = start * length / whole, (start + count) * length / whole
    # The bicubic kernel has a radius of two pixels of the coarser grid.
    margin = math.ceil(2 * max(length / (whole * patch), 1)) + 1
    first, last = max(math.floor(low) - margin, 0), min(math.ceil(high) + margin, length)
    return first, last, low - first, high - first


def make_optimizer(network: segmenter.SegmenterNetwork, settings: TrainingSettings
                   ) -> torch.optim.Optimizer:
    """Make the optimizer of the settings; temperatures and thresholds have no weight decay."""
    scalars = network.scalars
    free = {id(scalar) for scalar in scalars}
    # Checkpoints number the parameters across the groups, so their order must not change.
    groups: list[dict[str, object]] = [
        {"params": scalars, "weight_decay": 0.0},
        {"params": [item for item in network.parameters() if id(item) not in free]}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.01)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9, weight_decay=1e-4)


def learning_rate(settings: StepSettings, iteration: int) -> float:
    """Return the learning rate of a step: linear warm-up, then polynomial decay."""
    decay = (1 - iteration / settings.iterations) ** settings.power
    return settings.lr * min(1.0, (iteration + 1) / max(settings.warmup, 1)) * decay


def train(
    network: segmenter.SegmenterNetwork, optimizer: torch.optim.Optimizer,
    settings: TrainingSettings, batches: Iterable[CropBatch], *, start: int = 0,
    group: Group = ALONE,
) -> Iterator[Losses]:
    """Run steps `start`, `start + 1`, … on their batches and yield the losses of `step_losses`.

    The network and the optimizer are changed in place. The processes of the group share the crops
    of each step. Reading a loss on a GPU waits for the end of the step.
    """
    device = network.prototypes.device
    network.train()
    for module in network.modules():
        if isinstance(module, segmenter.ChannelDropout):
            module.group = group
    losses_of: Callable[[CropBatch], Losses] = share_losses(
        network, lambda batch: step_losses(network, batch, settings, group), group)
    for iteration, batch in zip(range(start, settings.iterations), batches, strict=False):
        torch.manual_seed(settings.seed * 1_000_003 + iteration)
        for part in optimizer.param_groups:
            part["lr"] = learning_rate(settings, iteration)
        losses = losses_of(batch.to(device, settings.precision))
        optimizer.zero_grad(set_to_none=True)
        weights = (settings.lambda_ce, settings.lambda_rsc, settings.lambda_aff)
        sum((weight * loss for weight, loss in zip(weights, losses, strict=False)),
            start=losses[0].new_zeros(())).backward()
        optimizer.step()
        with torch.no_grad():
            network.log_scale.clamp_(max=float(np.log(100)))
        yield tuple(loss.detach() for loss in losses)


def step_losses(
    network: segmenter.SegmenterNetwork, batch: CropBatch, settings: TrainingSettings,
    group: Group = ALONE,
) -> Losses:
    """Return mask loss, regional contrast and, if it has a weight, affinity loss of crops.

    `CropBatch.to` has moved them to the network's device. The contrast compares all crops, and
    means run over all pixels: every process of a group gathers the embeddings of all crops and
    computes the same losses.
    """
    grid = (settings.crop, settings.crop)
    lower = settings.precision != torch.float32
    with (torch.autocast(batch.valid.device.type, settings.precision) if lower
          else contextlib.nullcontext()):
        embeddings, fused = network.embeddings_and_fused(batch.layers, batch.patches, grid)
    embeddings, fused = embeddings.float(), None if fused is None else fused.float()
    if group.count > 1:
        embeddings = group.gather(embeddings)
        fused = None if fused is None or not settings.lambda_aff else group.gather(fused)
    # A padded patch is the zero vector, whose normalisation has a gradient of 1/ε. The upsampling
    # would pass it gradients from labels beside the padding.
    embeddings = torch.where(batch.valid[..., None], embeddings, embeddings.detach())
    mask = mask_loss(network.logits(embeddings, grid), batch.labels, balanced=settings.balanced)
    contrast = mask.new_zeros(()) if not settings.lambda_rsc else regional_contrast(
        embeddings, network.prototypes, network.class_rows.owners, batch.tags, network.mask_scale,
        network.mask_shift, network.log_scale.exp(), batch.valid)
    if not settings.lambda_aff or fused is None:
        return mask, contrast
    # The label nearest to the centre of each patch.
    middle = slice(LABELS_PER_PATCH // 2, None, LABELS_PER_PATCH)
    return mask, contrast, affinity_loss(fused, batch.labels[:, middle, middle], grid)


def mask_loss(logits: Tensor, labels: Tensor, *, balanced: bool) -> Tensor:
    """Return the cross-entropy of the pixels with the pseudo masks; a mean without pixels is 0.

    Args:
        logits: (B, C, h, w); upsampled to the labels.
        labels: (B, H, W); 255 is left out.
        balanced: take the mean over background pixels and the mean over the others, half of each,
            as in WeCLIP, since most pixels are background. Else the mean over all pixels.
    """
    full = F.interpolate(logits, size=tuple(labels.shape[-2:]), mode="bilinear",
                         align_corners=False)
    terms = F.cross_entropy(full.float(), labels.long(), ignore_index=IGNORE, reduction="none")
    counted = labels != IGNORE
    if not balanced:
        return terms.sum() / counted.sum().clamp_min(1)
    background = labels == BACKGROUND
    # Not terms[part]: its length depends on the data, so the host would wait for the GPU.
    parts = [terms.where(part, terms.new_zeros(())).sum() / part.sum().clamp_min(1)
             for part in (background, counted & ~background)]
    return 0.5 * parts[0] + 0.5 * parts[1]


def patch_affinity(fused: Tensor) -> Tensor:
    """Return WeCLIP's affinity of patches S = sigmoid(F·Fᵀ) (B, n, n) (CVPR 2024).

    F are a decoder's fused features (B, n, width), not normed.
    """
    return (fused @ fused.transpose(1, 2)).sigmoid()


def affinity_loss(fused: Tensor, labels: Tensor, grid: tuple[int, int], *, radius: int = 8
                  ) -> Tensor:
    """Return WeCLIP's affinity loss: ½·mean(1 − S) over pairs of one label + ½·mean(S) over others.

    A pair is two patches at most `radius` rows and columns apart, a patch with itself included, as
    in WeCLIP's code. Both means are over all pairs of the batch, with 1 added to the number of
    pairs. Fused features are those of `patch_affinity` (B, h·w, width); patches with the label
    (B, h, w) 255 are in no pair; the grid is (h, w).
    """
    affinity = patch_affinity(fused.float())
    flat = labels.flatten(1)
    y, x = (torch.arange(length, device=flat.device) for length in grid)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
    near = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= radius
    known = flat != IGNORE
    counted = near & known[:, :, None] & known[:, None]
    alike = counted & (flat[:, :, None] == flat[:, None])
    apart = counted & ~alike
    return 0.5 * (((1 - affinity) * alike).sum() / (alike.sum() + 1)
                  + (affinity * apart).sum() / (apart.sum() + 1))


def regional_contrast(
    embeddings: Tensor, prototypes: Tensor, class_index: Tensor, present: Sequence[Tensor],
    mask_scale: Tensor, mask_shift: Tensor, scale: Tensor, valid: Tensor | None = None,
) -> Tensor:
    """Return the regional semantic contrast (VPL, eqs. 12 and 13).

    Each (photo, present class) is an entry. P is the mean embedding of photo i under the soft mask
    of class n, S its cosine to the prototype of n. In the symmetric InfoNCE the positive is S of
    the entry. The negatives of its row are the batch's classes that photo i does not show; those
    of its column are the photos that do not show class n. The mask is sigmoid(scale·cos + shift) as
    in TCL: a mean weighted with cosines, which can be negative, could divide by zero. Without
    negatives the loss is 0.

    Args:
        embeddings: L2-normed V (B, n, dim).
        prototypes: L2-normed W (rows, dim).
        class_index: class of each row (rows,); on the CPU, as reading a GPU would wait for it.
        present: class indices of each photo (K_i,), on the CPU.
        mask_scale: scale of the soft mask.
        mask_shift: shift of the soft mask.
        scale: 1/τ of the contrast.
        valid: False for patches of padding (B, n); None: there is no padding.
    """
    owners = class_index.cpu()
    classes = torch.unique(torch.cat([item.to(owners) for item in present]))
    classes = classes[classes != BACKGROUND]
    marks = torch.stack([torch.isin(classes, item.to(owners)) for item in present])
    if not bool(marks.any()):
        return embeddings.sum() * 0
    rows = [(owners == index).nonzero()[:, 0] for index in classes]
    order, shown, pairs = (item.to(prototypes.device, non_blocking=True)
                           for item in (torch.cat(rows), marks, marks.nonzero()))
    own = prototypes.index_select(0, order).split([len(part) for part in rows])
    cosine = torch.stack([(embeddings @ part.T).amax(dim=-1) for part in own], dim=1)
    soft = (mask_scale * cosine + mask_shift).sigmoid()
    if valid is not None:
        soft = soft * valid[:, None]
    pooled = soft @ embeddings / soft.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    pooled = F.normalize(pooled, dim=-1)
    similarity = torch.stack([
        (pooled[:, column] @ part.T).amax(dim=-1) for column, part in enumerate(own)
    ], dim=1) * scale
    negatives = similarity.masked_fill(shown, float("-inf"))
    # log(e^s / (e^s + Σ e^negatives)); without negatives the term is log 1 = 0.
    by_row = similarity - torch.logaddexp(similarity, negatives.logsumexp(1, keepdim=True))
    by_column = similarity - torch.logaddexp(similarity, negatives.logsumexp(0, keepdim=True))
    photo, column = pairs.unbind(1)
    return -0.5 * (by_row[photo, column].mean() + by_column[photo, column].mean())
