"""Joint training of a segmenter with its encoder, or with the encoder's last blocks.

The result is an exponential moving average of the weights, a mean teacher (Tarvainen and Valpola,
NeurIPS 2017). Labels that are unlikely under the average are left out of the loss: networks fit
clean labels before they memorise noisy ones (Liu et al., NeurIPS 2020).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vpltool.core.classes import IGNORE
from vpltool.core.distributed import ALONE, Group, Losses, share_losses
from vpltool.core.grids import LABELS_PER_PATCH
from vpltool.core.segmenter import SegmenterNetwork
from vpltool.core.tower import Tower
from vpltool.core.training import StepSettings, learning_rate
from vpltool.core.vit import VisionTower

_TOP = 0.05
"""Share of a crop's pixels, the most likely ones, whose mean is the probability of a class."""


@dataclass(frozen=True)
class JointSettings:
    """Settings of joint training, in addition to `StepSettings`.

    Sources: LoRA, Hu et al., ICLR 2022 (`rank`); BEiT, Bao et al., ICLR 2022 (`layer_decay`).
    """

    average: float  # decay of the moving average of the weights
    blocks: int = 0  # number of last blocks to train; 0: the whole encoder, with its embedding
    rank: int = 0  # of low-rank updates of the blocks' matrices; 0: the matrices are trained
    doubt: float = 0.0  # pseudo labels less probable under the average are ignored; 0: none
    lambda_tags: float = 0.0  # weight of the tag loss
    lambda_masks: float = 0.0  # weight of the mask loss beside that of soft labels
    head_lr: float = 1.0  # factor on the learning rate of the head
    layer_decay: float = 1.0  # ratio of each block's learning rate to the next one's


@dataclass(frozen=True)
class PixelBatch:
    """Crops of one step, with `crop` patches per side; each process has only its own crops."""

    pixels: Tensor  # normalised (B, 3, crop·patch, crop·patch); padding is 0
    labels: Tensor  # pseudo labels (B, 4·crop, 4·crop) uint8, 255 = ignore
    valid: Tensor  # False where a patch is padding (B, crop, crop)
    shown: Tensor  # True for the classes in the crop's labels (B, classes), the background first
    possible: Tensor  # True for the classes that the photo's tags allow (B, classes)
    soft: Tensor | None = None  # a teacher's probabilities (B, classes, 4·crop, 4·crop), if any

    def to(self, device: torch.device) -> PixelBatch:
        """Return a copy on a device."""
        return replace(self, **{name: part.to(device, non_blocking=True)
                                for name, part in vars(self).items() if part is not None})


class LowRank(nn.Module):
    """A low-rank update of a matrix, the product of two thin ones, initially 0."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        # Drawn on the CPU: a seed draws the same numbers for every device.
        down = torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W + up·down."""
        return weight + self.up @ self.down


class Trained(nn.Module):
    """The trained parts of a segmenter: the encoder or its last blocks, and the head."""

    def __init__(self, tower: Tower, network: SegmenterNetwork, settings: JointSettings) -> None:
        super().__init__()
        self.layers = network.layers
        count = settings.blocks
        self.first = 0
        self.tower: Tower | None = None
        self.blocks = nn.ModuleList()
        if not count or not isinstance(tower, VisionTower) or count >= tower.depth:
            self.tower = tower.requires_grad_(True)
        else:
            self.first = tower.depth - count
            self.blocks.extend([*tower.blocks, tower.head.block][self.first :])
            self.blocks.requires_grad_(not settings.rank)
        self.network = network.requires_grad_(True)
        for scalar in network.scalars:
            # Joint training has no regional contrast.
            scalar.requires_grad_(False)
        if settings.rank:
            for linear in self.matrices():
                parametrize.register_parametrization(
                    linear, "weight", LowRank(linear.weight, settings.rank))

    def matrices(self) -> Iterator[nn.Linear]:
        """Yield the linear layers of the trained blocks, to which low-rank updates apply."""
        for block in self.blocks:
            yield from (part for part in block.modules() if isinstance(part, nn.Linear))

    def blocks_above(self) -> dict[int, int]:
        """Map the id of each encoder parameter to the number of blocks after its own.

        The parameters of an encoder with its own forward are divided evenly among its levels.
        """
        tower = self.tower
        if tower is not None and not isinstance(tower, VisionTower):
            parts = list(tower.parameters())
            return {id(part): tower.depth - 1 - number * tower.depth // len(parts)
                    for number, part in enumerate(parts)}
        # The whole tower first: the embedding, which is in no block, comes before all blocks.
        rooms = [*self.blocks] if tower is None else [tower, *tower.blocks, tower.head]
        return {id(part): len(rooms) - 1 - number
                for number, room in enumerate(rooms) for part in room.parameters()}

    def merge(self) -> None:
        """Merge low-rank updates into their matrices."""
        for linear in self.matrices():
            if parametrize.is_parametrized(linear):
                parametrize.remove_parametrizations(linear, "weight")

    def forward(self, state: State, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, h', w') at the network's own resolution."""
        if self.tower is not None and not isinstance(self.tower, VisionTower):
            # `Tower.forward` runs under no_grad, since towers are frozen elsewhere.
            run = inspect.unwrap(type(self.tower).forward)
            layers = run(self.tower, state.tokens, patches="none", attention=False,
                         layers=self.layers).layers
        else:
            blocks: Iterable[nn.Module] = self.blocks
            if self.tower is not None:
                blocks = [*self.tower.blocks, self.tower.head.block]
                state = replace(state, tokens=self.tower.embed(state.tokens))
            kept = state.after(blocks, self.first, self.layers).kept
            layers = torch.stack([kept[index].float() for index in self.layers], dim=1)
        return self.network.logits(self.network.embeddings(layers, None, grid), grid)


@dataclass(frozen=True)
class State:
    """The state of crops after the encoder's first blocks."""

    tokens: Tensor  # input of the next block (B, prefix+n, width); pixels if no block is frozen
    kept: dict[int, Tensor]  # block outputs that the network reads, without prefix (B, n, width)
    prefix: int = 0  # number of tokens before the patches

    def after(self, blocks: Iterable[nn.Module], first: int, layers: Sequence[int]) -> State:
        """Run blocks, numbered from `first`, up to the last layer that is read."""
        tokens, kept = self.tokens, dict(self.kept)
        for index, block in enumerate(blocks, first):
            if index > max(layers):
                break
            tokens = block(tokens)
            if index in layers:
                kept[index] = tokens[:, self.prefix :]
        return State(tokens, kept, self.prefix)


class Pair(nn.Module):
    """The trained parts and their moving average; a checkpoint holds both.

    The given encoder and network are changed in place.
    """

    def __init__(self, tower: Tower, network: SegmenterNetwork, settings: JointSettings) -> None:
        super().__init__()
        self.settings = settings
        self.now = Trained(tower, network, settings)
        self.mean = copy.deepcopy(self.now).requires_grad_(False).eval()
        # Training mode skips the walk between patches, for which crops are too small.
        self.mean.network.train()
        # In a tuple, so that it is no submodule: checkpoints hold nothing frozen.
        self.frozen = (tower,)

    def train(self, mode: bool = True) -> Pair:
        """Set the mode of the trained parts only."""
        self.now.train(mode)
        return self

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> State:
        """Run the frozen blocks on pixels (B, 3, H, W)."""
        (tower,), first = self.frozen, self.now.first
        prefix = tower.head.prefix if isinstance(tower, VisionTower) else 0
        if not first:
            return State(pixels, {}, prefix)
        assert isinstance(tower, VisionTower)
        return State(tower.embed(pixels), {}, prefix).after(
            tower.blocks[:first], 0, self.now.layers)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Update the average after a step, with a lower decay in the first steps."""
        decay = min(self.settings.average, (1 + step) / (10 + step))
        for mean, now in zip(self.mean.state_dict().values(), self.now.state_dict().values(),
                             strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def finish(self) -> None:
        """Load the average into the given encoder and network."""
        self.now.load_state_dict(self.mean.state_dict())
        self.now.merge()
        self.now.requires_grad_(False).eval()


def joint_optimizer(pair: Pair, settings: StepSettings) -> torch.optim.Optimizer:
    """Return AdamW over the encoder and the head, without weight decay for vectors."""
    joint, above = pair.settings, pair.now.blocks_above()
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for part in pair.now.parameters():
        if part.requires_grad:
            of_head = id(part) not in above
            scale = joint.head_lr if of_head else joint.layer_decay ** above[id(part)]
            groups.setdefault((of_head, scale, part.dim() > 1), []).append(part)
    return torch.optim.AdamW(
        [{"params": parts, "weight_decay": 0.05 if decayed else 0.0, "scale": scale}
         for (_, scale, decayed), parts in sorted(groups.items(), key=lambda item: item[0])],
        lr=settings.lr)


def train_jointly(
    pair: Pair, optimizer: torch.optim.Optimizer, settings: StepSettings,
    batches: Iterable[PixelBatch], *, start: int = 0, group: Group = ALONE,
) -> Iterator[Losses]:
    """Run steps `start`, `start + 1`, …; see `training.train`.

    Yields the loss of masks or soft labels; and that of tags, or of masks beside soft labels.
    """
    device = next(pair.parameters()).device
    pair.train()
    losses_of: Callable[[PixelBatch], Losses] = share_losses(
        pair.now, lambda batch: _losses(pair, batch, settings, group), group)
    for iteration, batch in zip(range(start, settings.iterations), batches, strict=False):
        torch.manual_seed(settings.seed * 1_000_003 + iteration)
        for part in optimizer.param_groups:
            part["lr"] = learning_rate(settings, iteration) * part["scale"]
        losses = losses_of(batch.to(device))
        optimizer.zero_grad(set_to_none=True)
        sum(losses[1:], start=losses[0]).backward()
        nn.utils.clip_grad_norm_([part for part in pair.now.parameters() if part.requires_grad],
                                 1.0)
        optimizer.step()
        pair.follow(iteration)
        yield tuple(loss.detach() for loss in losses)


def _losses(pair: Pair, batch: PixelBatch, settings: StepSettings, group: Group) -> Losses:
    """Return the weighted losses of this process's crops."""
    joint, crop = pair.settings, settings.crop
    grid = (crop, crop)
    with torch.autocast(batch.pixels.device.type, settings.precision,
                        enabled=settings.precision != torch.float32):
        state = pair.encode(batch.pixels)
        logits = _at_labels(pair.now(state, grid), crop)
        doubting = None
        if joint.doubt:
            with torch.no_grad():
                doubting = _at_labels(pair.mean(state, grid), crop).softmax(dim=1)
    valid = batch.valid.repeat_interleave(LABELS_PER_PATCH, 1).repeat_interleave(
        LABELS_PER_PATCH, 2)
    if batch.soft is not None:
        return _distilled(logits, batch.labels, batch.soft, valid, joint.lambda_masks, group)
    labels = batch.labels
    if doubting is not None:
        labels = undoubted(labels, doubting, joint.doubt)
    first = _mean(F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none"),
                  labels != IGNORE, group)
    if not joint.lambda_tags:
        return (first,)
    return first, joint.lambda_tags * _mean(
        *tag_terms(logits, valid, batch.shown, batch.possible), group)


def _distilled(logits: Tensor, labels: Tensor, soft: Tensor, valid: Tensor, lambda_masks: float,
               group: Group) -> Losses:
    logs = logits.log_softmax(dim=1)
    first = _mean(-(soft * logs).sum(dim=1), valid & (soft.sum(dim=1) > 0), group)
    if not lambda_masks:
        return (first,)
    agreed = agreeing(labels, soft)
    return first, lambda_masks * _mean(
        F.nll_loss(logs, agreed.long(), ignore_index=IGNORE, reduction="none"),
        agreed != IGNORE, group)


def _mean(terms: Tensor, counted: Tensor, group: Group) -> Tensor:
    """Return the mean over all processes' pixels, times their number: gradients are averaged."""
    total = group.total(counted.sum()).clamp_min(1) / group.count
    return terms.where(counted, terms.new_zeros(())).sum() / total


def _at_labels(logits: Tensor, crop: int) -> Tensor:
    side = crop * LABELS_PER_PATCH
    return F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)


def undoubted(labels: Tensor, mean: Tensor, least: float) -> Tensor:
    """Ignore labels (B, h, w) whose probability in `mean` (B, classes, h, w) is below `least`."""
    known = labels != IGNORE
    index = labels.long().where(known, torch.zeros_like(labels, dtype=torch.long))
    doubted = mean.gather(1, index[:, None])[:, 0] < least
    return labels.masked_fill(known & doubted, IGNORE)


def agreeing(labels: Tensor, soft: Tensor) -> Tensor:
    """Keep labels (B, h, w) that equal the argmax of `soft` (B, classes, h, w); others: 255."""
    return labels.masked_fill(labels != soft.argmax(dim=1).to(labels.dtype), IGNORE)


def tag_terms(logits: Tensor, valid: Tensor, shown: Tensor, possible: Tensor
              ) -> tuple[Tensor, Tensor]:
    """Return the binary cross-entropy of tags with the mean over each class's likeliest pixels.

    A class in the crop's labels is present, an untagged one is absent. The others are unknown,
    since the crop may not contain them. Logits are (B, classes, h, w), `valid` is False at padding
    (B, h, w); for `shown` and `possible` see `PixelBatch`. The terms are (B, classes − 1); second
    comes a mask of the known ones.
    """
    chance = logits.softmax(dim=1)[:, 1:].masked_fill(~valid[:, None], 0).flatten(2)
    top = chance.topk(max(1, round(_TOP * chance.shape[2])), dim=2).values.mean(dim=2)
    known = (shown | ~possible)[:, 1:]
    # Rounding can push a probability out of (0, 1), where the logarithm is undefined.
    terms = F.binary_cross_entropy(top.clamp(1e-6, 1 - 1e-6), shown[:, 1:].float(),
                                   reduction="none")
    return terms, known
