"""Crops keep photo and labels together; a run that was stopped ends as one that was not."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from trainings import training_with

from vpltool.core.grids import LABELS_PER_PATCH
from vpltool.core.photos import fit_size
from vpltool.core.segmenter import Decoder, DecoderShape
from vpltool.core.training import (
    CropBatch,
    TrainingSettings,
    Window,
    choose_window,
    chosen_photos,
    cut_photo,
    generator_of,
    labels_at,
    learning_rate,
    make_optimizer,
    train,
)


def random_window(
    image: Tensor, labels: Tensor, side: int, unit: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """An image and its labels, cut by one window; and where that is no padding."""
    window = choose_window((image.shape[1] // unit, image.shape[2] // unit), side, rng)
    return window.cut(image, unit), window.cut_labels(labels), window.valid()


def numbered(height: int, width: int, unit: int) -> tuple[Tensor, Tensor]:
    """An image that holds each patch's own number, from 1, and labels that hold the same."""
    numbers = torch.arange(1, height * width + 1).view(height, width)
    image = numbers.repeat_interleave(unit, 0).repeat_interleave(unit, 1).float()
    fine = numbers.repeat_interleave(LABELS_PER_PATCH, 0).repeat_interleave(LABELS_PER_PATCH, 1)
    return image[None].repeat(3, 1, 1), fine.to(torch.uint8)


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("size", [(6, 9), (4, 4), (3, 5), (7, 2), (2, 2)])
def test_window_keeps_image_and_labels_aligned(size: tuple[int, int], unit: int) -> None:
    side, seen = 4, set()
    for seed in range(250):
        image, labels = numbered(*size, unit)
        cut, marks, valid = random_window(image, labels, side, unit, np.random.default_rng(seed))
        assert tuple(cut.shape) == (3, side * unit, side * unit)
        assert tuple(marks.shape) == (side * LABELS_PER_PATCH, side * LABELS_PER_PATCH)
        real = valid.view(side, side)
        assert int(real.sum()) == min(side, size[0]) * min(side, size[1])
        for y in range(side):
            for x in range(side):
                patch = cut[:, y * unit : (y + 1) * unit, x * unit : (x + 1) * unit]
                label = marks[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                wanted = int(label[0, 0])
                assert (label == wanted).all()
                assert (patch == (wanted if real[y, x] else 0)).all()
                assert (wanted == 255) == (not real[y, x])
        kept = marks[::4, ::4][real].view(min(side, size[0]), -1)
        step = int(kept[0, 1]) - int(kept[0, 0])
        assert step in (1, -1)
        seen.add((step, int(kept.min())))
    # Both directions, and every place where the window fits.
    corners = (max(size[0] - side, 0) + 1) * (max(size[1] - side, 0) + 1)
    assert len(seen) == 2 * corners


def test_window_flips_within_a_patch() -> None:
    """A mirrored photo has mirrored pixels, not only patches in another order."""
    image = torch.arange(16.0).repeat(3, 16, 1)
    labels = torch.arange(8).repeat(8, 1).to(torch.uint8)
    pictures = {tuple(random_window(image, labels, 2, 8, np.random.default_rng(seed))[0][0, 0]
                      .tolist()) for seed in range(20)}
    assert pictures == {tuple(range(16)), tuple(range(15, -1, -1))}


def test_window_of_stored_layers() -> None:
    layers = torch.arange(2 * 3 * 5).view(2, 3, 5, 1).float()
    cut, _, valid = random_window(layers, torch.zeros(12, 20, dtype=torch.uint8), 4, 1,
                                  np.random.default_rng(0))
    assert tuple(cut.shape) == (2, 4, 4, 1)
    assert (cut[1, :3] - cut[0, :3] == 15).all()
    assert valid.view(4, 4)[:3].all()
    assert not valid.view(4, 4)[3].any()


def test_labels_at() -> None:
    labels = np.kron(np.array([[1, 2], [255, 0]], np.uint8), np.ones((15, 21), np.uint8))
    found = labels_at(labels, (2, 2))
    assert tuple(found.shape) == (8, 8)
    assert found[:4, :4].unique().tolist() == [1]
    assert found[:4, 4:].unique().tolist() == [2]
    assert found[4:, :4].unique().tolist() == [255]


@pytest.mark.parametrize("size", [(1, 1), (7, 900), (333, 500), (375, 499), (1080, 1920)])
@pytest.mark.parametrize("grid", [(1, 2), (15, 31), (20, 20), (64, 3)])
def test_labels_at_is_torchs_nearest_neighbour(size: tuple[int, int], grid: tuple[int, int]
                                               ) -> None:
    labels = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    wanted = F.interpolate(torch.from_numpy(labels)[None, None].float(), mode="nearest-exact",
                           size=(4 * grid[0], 4 * grid[1]))[0, 0]
    found = labels_at(labels, grid)
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), wanted)


def natural(height: int, width: int) -> np.ndarray[Any, Any]:
    """Smooth colours, sharp edges and some grain, as photographs have."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (height // 30 + 2, width // 30 + 2, 3)).astype(np.uint8)
    photo = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    photo[height // 3 : height // 2, width // 4 : width // 2] //= 3
    grain = rng.normal(0, 3, photo.shape)
    return (photo + grain).clip(0, 255).astype(np.uint8)


def scaled_and_cut(photo: np.ndarray[Any, Any], window: Window, patch: int) -> Tensor:
    """The plain way: the whole photo is scaled."""
    size = (window.grid[1] * patch, window.grid[0] * patch)
    whole = np.array(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))
    return window.cut(torch.from_numpy(whole).permute(2, 0, 1), patch)


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("size", [(375, 500), (500, 375), (120, 700), (90, 80), (768, 1024)])
def test_a_cut_photo_is_that_of_the_scaled_photo(size: tuple[int, int], patch: int) -> None:
    photo, rng = natural(*size), np.random.default_rng(1)
    different = total = 0
    for scale in (0.5, 0.7, 1.0, 1.3, 2.0):
        height, width = fit_size(size, patch, scale=scale)
        window = choose_window((height // patch, width // patch), 20, rng)
        found, wanted = cut_photo(photo, window, patch), scaled_and_cut(photo, window, patch)
        assert found.shape == wanted.shape == (3, 20 * patch, 20 * patch)
        assert found.dtype == torch.uint8
        apart = (found.int() - wanted.int()).abs()
        assert int(apart.max()) <= 2
        different += int((apart > 0).sum())
        total += apart.numel()
    assert different < total / 1000


@pytest.mark.parametrize(("size", "scale"), [
    ((375, 500), 0.5), ((200, 300), 1.0), ((90, 80), 2.0), ((320, 320), 1.0), ((319, 77), 0.9)])
def test_a_photo_that_is_wholly_inside_is_cut_to_the_bit(size: tuple[int, int], scale: float
                                                         ) -> None:
    for seed in range(4):
        height, width = fit_size(size, 16, scale=scale)
        window = choose_window((height // 16, width // 16), 20, np.random.default_rng(seed))
        assert window.area[2:] == window.grid
        photo = natural(*size)
        assert torch.equal(cut_photo(photo, window, 16), scaled_and_cut(photo, window, 16))


def test_a_crop_sees_a_share_of_a_large_photo_and_costs_its_own_pixels() -> None:
    """12 megapixels: at most 1024 at scale 1, as `predict` sees them; not 48 megapixels scaled."""
    photo = np.zeros((3000, 4000, 3), np.uint8)
    shares = []
    for scale in (0.5, 1.0, 2.0):
        height, width = fit_size((3000, 4000), 16, scale=scale, max_side=1024)
        window = choose_window((height // 16, width // 16), 20, np.random.default_rng(0))
        shares.append(20 / window.grid[1])
        tracemalloc.start()
        cut_photo(photo, window, 16)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        labels_at(photo[..., 0], window.grid)
        # The part of the photo that the window shows, once: 3 bytes a pixel.
        assert peak < 1.3 * 3 * 3000 * 4000 * min(shares[-1], 1) * min(20 / window.grid[0], 1) + 1e6
    assert shares == [20 / 32, 20 / 64, 20 / 128]


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (2, 6), (6, 6), (5, 1)])
def test_every_photo_once_an_epoch(count: int, batch_size: int) -> None:
    settings = training_with(iters=count * 4, batch_size=batch_size)
    order = [number for iteration in range(count * 4)
             for number in chosen_photos(count, settings, iteration)]
    epochs = [order[start : start + count] for start in range(0, len(order) - count + 1, count)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(range(count))
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = training_with(iters=count * 4, batch_size=batch_size, seed=1)
    assert order != [number for iteration in range(count * 4)
                     for number in chosen_photos(count, other, iteration)]


SHAPE = DecoderShape((0, 1), 6, 8, width=16, blocks=1, heads=2, residual=False)


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(4, 8), dim=-1)
    return Decoder(SHAPE, rows, torch.tensor([1, 2, 0, 0]), 0.07)


def batches(settings: TrainingSettings, start: int) -> Iterator[CropBatch]:
    for iteration in range(start, settings.iterations):
        rng = generator_of(settings, iteration)
        count = settings.crop**2
        layers = torch.from_numpy(rng.standard_normal((2, 2, count, 6), dtype=np.float32))
        patches = torch.from_numpy(rng.standard_normal((2, count, 8), dtype=np.float32))
        labels = torch.from_numpy(rng.integers(0, 3, (2, 4 * settings.crop, 4 * settings.crop)))
        yield CropBatch(layers, F.normalize(patches, dim=-1), labels.to(torch.uint8),
                        torch.ones(2, count, dtype=torch.bool),
                        [torch.tensor([1]), torch.tensor([2])])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_is_uninterrupted(optimizer: str) -> None:
    settings = replace(training_with(iters=8, batch_size=2, crop=3, optimizer=optimizer), warmup=3)
    whole = make_decoder()
    records = list(train(whole, make_optimizer(whole, settings), settings, batches(settings, 0)))

    first = make_decoder()
    steps = make_optimizer(first, settings)
    begun = train(first, steps, settings, batches(settings, 0))
    for _ in range(5):
        next(begun)
    weights = {name: value.clone() for name, value in first.state_dict().items()}
    state = steps.state_dict()
    second = make_decoder()
    torch.manual_seed(12345)
    second.load_state_dict(weights)
    again = make_optimizer(second, settings)
    again.load_state_dict(state)
    rest = list(train(second, again, settings, batches(settings, 5), start=5))

    assert rest == records[5:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_training_learns() -> None:
    settings = replace(training_with(iters=150, batch_size=2, crop=3, optimizer="adamw", lr=0.01),
                       warmup=1)
    decoder = make_decoder()
    batch = next(batches(settings, 0))

    def same() -> Iterator[CropBatch]:
        while True:
            yield batch

    batch = replace(batch, labels=batch.labels // 128 + 1)
    records = list(train(decoder, make_optimizer(decoder, settings), settings,
                                           same()))
    assert len(records) == 150
    assert records[-1][0] < 0.2 * records[0][0]


def test_without_contrast_nothing_of_it_is_trained() -> None:
    settings = training_with(iters=2, batch_size=2, crop=3, lambda_rsc=0)
    decoder = make_decoder()
    before = decoder.mask_scale.item()
    records = list(train(decoder, make_optimizer(decoder, settings), settings,
                         batches(settings, 0)))
    assert [record[1] for record in records] == [0, 0]
    assert decoder.mask_scale.item() == before


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_leaves_the_contrasts_scalars_alone(optimizer: str) -> None:
    """Without a gradient weights shrink; the scale, shift and temperature of the contrast stay."""
    decoder = make_decoder()
    steps = make_optimizer(decoder, training_with(iters=1, optimizer=optimizer, lr=0.1))
    before = {name: value.clone() for name, value in decoder.named_parameters()}
    for value in decoder.parameters():
        value.grad = torch.zeros_like(value)
    steps.step()
    moved = {name for name, value in decoder.named_parameters()
             if not torch.equal(value, before[name])}
    assert moved == {name for name, value in before.items() if bool(value.any())} - {
        "mask_scale", "mask_shift", "log_scale"}
    assert decoder.fuse.weight.norm() < before["fuse.weight"].norm()


def test_a_checkpoint_numbers_parameters_as_the_decoder_does() -> None:
    """As before there were groups: a run that was stopped then goes on to the right ones."""
    decoder = make_decoder()
    steps = make_optimizer(decoder, training_with(iters=1))
    numbered = [item for group in steps.param_groups for item in group["params"]]
    assert all(one is other for one, other in zip(numbered, decoder.parameters(), strict=True))


def test_prototypes_stay_frozen() -> None:
    settings = training_with(iters=3, batch_size=2, crop=3)
    decoder = make_decoder()
    before = decoder.prototypes.clone()
    list(train(decoder, make_optimizer(decoder, settings), settings, batches(settings, 0)))
    assert torch.equal(decoder.prototypes, before)


def test_learning_rate() -> None:
    settings = replace(training_with(iters=100, lr=2.0, power=1.0), warmup=10)
    assert learning_rate(settings, 0) == pytest.approx(0.2)
    assert learning_rate(settings, 50) == pytest.approx(1.0)
    assert learning_rate(settings, 99) == pytest.approx(0.02)


def test_only_the_classes_that_the_crop_shows_count() -> None:
    labels = torch.zeros(2, 12, 12, dtype=torch.uint8)
    labels[0, 3:5] = 2
    labels[1, :, 4:] = 255
    batch = CropBatch(torch.zeros(2, 2, 9, 6), None, labels, torch.ones(2, 9, dtype=torch.bool),
                      [torch.tensor([1, 2]), torch.tensor([3])])
    tags = batch.to(torch.device("cpu")).tags
    assert [item.tolist() for item in tags] == [[2], []]


@pytest.mark.parametrize("balanced", [True, False])
def test_a_step_asks_the_device_nothing(balanced: bool) -> None:
    """Meta tensors have no values: a step that waited for one, as for a GPU's, would fail here."""
    settings = training_with(iters=1, batch_size=2, crop=3, balanced=balanced)
    decoder = make_decoder()
    rows = decoder.class_rows
    decoder = decoder.to("meta")
    decoder._rows = (decoder.class_index, decoder.class_index._version, replace(
        rows, order=rows.order.to("meta"), columns=rows.columns.to("meta")))
    (record,) = train(decoder, make_optimizer(decoder, settings), settings, batches(settings, 0))
    assert {loss.device.type for loss in record} == {"meta"}
    assert decoder.fuse.weight.grad is not None
    assert decoder.log_scale.grad is not None


def test_the_rows_of_the_classes_are_those_of_the_buffer() -> None:
    """They are asked for once; a loaded decoder has others."""
    decoder = make_decoder()
    first = decoder.class_rows
    assert decoder.class_rows is first
    assert first.owners.tolist() == [1, 2, 0, 0]
    state = {**decoder.state_dict(), "class_index": torch.tensor([0, 1, 0, 2])}
    decoder.load_state_dict(state)
    assert decoder.class_rows.owners.tolist() == [0, 1, 0, 2]
    assert decoder.to("meta").class_index.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        _ = decoder.class_rows
