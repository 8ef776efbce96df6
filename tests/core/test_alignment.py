"""The alignment against loops: contrast, refresh, steps, folding, GradCAM behind the map."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from as_methods import gradcam_of as gradcam
from reference import ssr_cmpa as plain
from torch import Tensor

from vpltool.clip.load import import_open_clip, tower_from_open_clip
from vpltool.core.alignment import (
    AlignedHead,
    AlignedSpace,
    Aligner,
    AlignmentSettings,
    Regions,
    calibrate,
    class_accuracy,
    contrast,
    make_optimizer,
    make_stack,
    refresh,
    train,
)
from vpltool.core.seeds import region_weights

TEXT_CLASS = [1, 2, 2, 3, 4, 0, 0]
"""Class 2 has two rows, the background too; class 4 has no region."""

REGION_CLASS = [1, 0, 2, 1, 3, 0, 3, 2, 1]


def units(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator).double(), dim=-1)


def some_regions() -> tuple[Regions, list[plain.Region]]:
    """Nine regions of one to five pixels; pixels are shared by regions of a photo."""
    rng = torch.Generator().manual_seed(5)
    lists: list[plain.Region] = []
    for number in range(len(REGION_CLASS)):
        count = 1 + number % 5
        chosen = torch.randperm(20, generator=rng)[:count].tolist()
        lists.append([(pixel, 0.2 + 0.1 * place + 0.05 * number)
                      for place, pixel in enumerate(chosen)])
    entries = [entry for region in lists for entry in region]
    return Regions(units(20, 6, 1), torch.tensor([pixel for pixel, _ in entries]),
                   torch.tensor([weight for _, weight in entries], dtype=torch.float64),
                   torch.tensor([len(region) for region in lists]),
                   torch.tensor(REGION_CLASS)), lists


def settings_of(**changed: Any) -> AlignmentSettings:
    return AlignmentSettings(**({
        "iterations": 3, "batch_size": 6, "patches": 3, "refresh": 2, "lr": 0.01,
        "weight_decay": 0.02, "clusters": False, "seed": 3} | changed))


def an_aligner(regions: Regions, **changed: Any) -> Aligner:
    torch.manual_seed(2)
    made = Aligner(**({
        "width": 5, "depth": 2, "last_relu": False, "shared_start": False, "tau": 0.1,
        "learn_tau": True, "text": units(7, 6, 9), "class_index": torch.tensor(TEXT_CLASS),
        "regions": regions} | changed)).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("1.weight", "1.bias", "4.weight", "4.bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def layers_of(stack: torch.nn.Sequential) -> plain.Stack:
    """The same for the reference; leaves that take gradients."""
    linear: list[Any] = [part for part in stack if isinstance(part, torch.nn.Linear)]
    norms: list[Any] = [part for part in stack if isinstance(part, torch.nn.BatchNorm1d)]
    return [{"weight": first.weight.detach().clone().requires_grad_(),
             "gain": second.weight.detach().clone().requires_grad_(),
             "shift": second.bias.detach().clone().requires_grad_()}
            for first, second in zip(linear, norms, strict=True)]


def test_contrast_is_that_of_loops() -> None:
    queries, keys = units(8, 5, 1), units(6, 5, 2)
    labels, owners = [1, 2, 0, 3, 1, 2, 0, 7], [1, 2, 2, 3, 0, 0]
    found = contrast(queries, torch.tensor(labels), keys, torch.tensor(owners), torch.tensor(0.05))
    wanted = plain.info_nce(queries, labels, keys, owners, 0.05)
    torch.testing.assert_close(found, wanted)
    nobody = contrast(queries[7:], torch.tensor([7]), keys, torch.tensor(owners), torch.tensor(0.1))
    assert float(nobody) == 0


def test_contrast_without_a_key_has_a_finite_gradient() -> None:
    queries = units(3, 5, 1).requires_grad_()
    contrast(queries, torch.tensor([1, 7, 2]), units(2, 5, 2), torch.tensor([1, 2]),
             torch.tensor(0.1)).backward()
    assert queries.grad is not None
    assert bool(queries.grad.isfinite().all())
    assert not bool(queries.grad[1].any())


@pytest.mark.parametrize("clusters", [True, False])
@pytest.mark.parametrize("last_relu", [True, False])
def test_refresh_is_that_of_loops(clusters: bool, last_relu: bool) -> None:
    regions, lists = some_regions()
    aligner = an_aligner(regions, last_relu=last_relu)
    settings = settings_of(clusters=clusters)
    refresh(aligner, regions, settings)
    pixels, _ = regions.draw(2048, settings.patches, settings.seed)
    vision, text = layers_of(aligner.vision), layers_of(aligner.text)
    kept = plain.collected(vision, regions.embeddings[pixels], last_relu)
    mapped = plain.forward(vision, regions.embeddings, last_relu, kept).detach()
    means = plain.region_means(mapped, lists)
    centres, labels = plain.refreshed(means, REGION_CLASS, clusters)
    torch.testing.assert_close(aligner.vision_prototypes, centres.detach())
    assert aligner.labels.tolist() == labels
    spoken = plain.forward(text, aligner.words, last_relu,
                           plain.collected(text, aligner.words, last_relu))
    torch.testing.assert_close(aligner.text_prototypes, spoken.detach())
    if clusters:
        assert labels != REGION_CLASS, "K-means moves nothing, and the test proves little"


@pytest.mark.parametrize("learn_tau", [True, False])
def test_steps_are_those_of_loops(learn_tau: bool) -> None:
    """Three steps with a refresh before the third: AdamW's moments and decay count."""
    regions, _ = some_regions()
    aligner = an_aligner(regions, learn_tau=learn_tau)
    settings = settings_of(clusters=True)
    stacks = [layers_of(aligner.vision), layers_of(aligner.text)]
    log_tau = aligner.log_tau.detach().clone().requires_grad_()
    moments: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}
    optimizer = make_optimizer(aligner, settings)
    words, shown = aligner.words, regions.classes.tolist()
    for step, found in enumerate(train(aligner, optimizer, regions, settings), 1):
        # Prototypes and labels are the product's: `test_refresh_…` checks them.
        pixels, region = regions.draw(6, 3, 3 * 1_000_003 + step)
        seen = plain.forward(stacks[0], regions.embeddings[pixels], False)
        spoken = plain.forward(stacks[1], words, False)
        tau = log_tau.exp()
        labels = [int(aligner.labels[number]) for number in region.tolist()]
        losses = (plain.info_nce(seen, labels, aligner.text_prototypes, TEXT_CLASS, tau),
                  plain.info_nce(spoken, TEXT_CLASS, aligner.vision_prototypes, shown, tau))
        torch.testing.assert_close(found[0], losses[0].detach())
        torch.testing.assert_close(found[1], losses[1].detach())
        (sum(losses) / 2).backward()
        for number, stack in enumerate(stacks):
            for place, layer in enumerate(stack):
                for name, value in layer.items():
                    key = (number, place, name)
                    start = (torch.zeros_like(value), torch.zeros_like(value))
                    assert value.grad is not None
                    moved, moments[key] = plain.adamw(
                        value.detach(), value.grad, step, moments.get(key, start),
                        settings.lr, settings.weight_decay)
                    layer[name] = moved.requires_grad_()
        if learn_tau:
            assert log_tau.grad is not None
            key, start = (9, 9, "tau"), (torch.zeros(()), torch.zeros(()))
            moved, moments[key] = plain.adamw(log_tau.detach(), log_tau.grad, step,
                                              moments.get(key, start), settings.lr, 0.0)
            log_tau = moved.clamp_min(torch.tensor(plain.LEAST_TAU).log()).requires_grad_()
    for stack, module in zip(stacks, (aligner.vision, aligner.text), strict=True):
        for wanted, found in zip(stack, layers_of(module), strict=True):
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name], atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(aligner.log_tau.detach(), log_tau.detach())


def test_steps_depend_on_seed_and_number_only() -> None:
    regions, _ = some_regions()
    settings = settings_of(iterations=4)
    whole, parts = an_aligner(regions), an_aligner(regions)
    optimizer = make_optimizer(whole, settings)
    for _ in train(whole, optimizer, regions, settings):
        pass
    optimizer = make_optimizer(parts, settings)
    for _ in islice(train(parts, optimizer, regions, settings), 3):
        pass
    for _ in train(parts, optimizer, regions, settings, start=3):
        pass
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(parts.state_dict()[name]), name


def test_a_learned_temperature_does_not_fall_below_a_hundredth() -> None:
    regions, _ = some_regions()
    aligner = an_aligner(regions, tau=0.0101)
    settings = settings_of(lr=0.5)
    for _ in train(aligner, make_optimizer(aligner, settings), regions, settings):
        assert float(aligner.log_tau.exp().detach()) >= 0.01 - 1e-9


def test_both_stacks_may_begin_alike() -> None:
    regions, _ = some_regions()
    torch.manual_seed(2)
    made = Aligner(width=5, depth=2, last_relu=False, shared_start=True, tau=0.1,
                   learn_tau=True, text=units(7, 6, 9), class_index=torch.tensor(TEXT_CLASS),
                   regions=regions)
    assert all(ours.equal(theirs) for ours, theirs in zip(
        made.vision.parameters(), made.text.parameters(), strict=True))
    assert not {id(item) for item in made.vision.parameters()} & {
        id(item) for item in made.text.parameters()}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("last_relu", [True, False])
def test_folded_is_batch_norm_in_eval(depth: int, last_relu: bool) -> None:
    torch.manual_seed(4)
    stack = make_stack(6, 5, depth, last_relu=last_relu)
    for parameter in stack.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    batch = units(40, 6, 3).float()
    stack(batch)
    stack.eval()
    space = AlignedSpace.folded(stack)
    wanted = F.normalize(stack(batch), dim=-1).detach()
    torch.testing.assert_close(space(batch), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(space(batch.view(2, 20, 6)), wanted.view(2, 20, 5), atol=1e-6,
                               rtol=1e-5)
    again = AlignedSpace.from_tensors(space.tensors, last_relu)
    assert again(batch).equal(space(batch))
    assert last_relu == bool((wanted >= 0).all())


def test_calibration_is_the_last_word_on_statistics() -> None:
    """Whatever was passed through before."""
    regions, _ = some_regions()
    first, second = an_aligner(regions), an_aligner(regions)
    second.vision(units(9, 6, 8))
    for aligner in (first, second):
        calibrate(aligner, regions, settings_of())
        assert not aligner.training
    assert all(ours.equal(theirs) for ours, theirs in zip(
        first.vision[1].state_dict().values(), list(second.vision[1].state_dict().values())[:4],
        strict=False))


def test_pixels_are_drawn_as_their_weights_say() -> None:
    regions, lists = some_regions()
    pixels, owner = regions.draw(3000, 20, seed=1)
    for number, region in enumerate(lists):
        mine = pixels[owner == number]
        assert {*mine.tolist()} == {pixel for pixel, _ in region}
        total = sum(weight for _, weight in region)
        for pixel, weight in region:
            share = float((mine == pixel).float().mean())
            assert share == pytest.approx(weight / total, abs=0.03)
    shares = owner.bincount() / len(owner)
    torch.testing.assert_close(shares, torch.full((9,), 1 / 9), atol=0.02, rtol=0)
    assert regions.draw(5, 4, 1)[0].equal(regions.draw(5, 4, 1)[0])
    assert not regions.draw(5, 4, 1)[0].equal(regions.draw(5, 4, 2)[0])


def test_weights_of_a_photo() -> None:
    cam = torch.tensor([[[0.5, 0.1, 0.3]], [[0.45, 0.1, 0.9]]])
    weights, classes = region_weights(cam, torch.tensor([2, 4]), 0.4, 0.15)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0, 0], [0.45, 0, 0.9], [0, 0.9, 0]]))
    assert classes.tolist() == [2, 4, 0]
    weights, classes = region_weights(cam, torch.tensor([2, 4]), 0, None)
    torch.testing.assert_close(weights, cam[:, 0])
    assert classes.tolist() == [2, 4]
    weights, classes = region_weights(torch.zeros(0, 1, 3), torch.zeros(0, dtype=torch.long), 0.4,
                                      0.15)
    assert weights.tolist() == [[1, 1, 1]]
    assert classes.tolist() == [0]


def test_accuracy_counts_the_rows_of_classes() -> None:
    rows = torch.eye(3)
    features = torch.tensor([[0.9, 0.1, 1.0], [0.1, 0.9, 0.0], [0.8, 0.2, 0.0]])
    found = class_accuracy(features, torch.tensor([1, 2, 2]), rows, torch.tensor([1, 2, 0]))
    assert found == pytest.approx(2 / 3)


@pytest.mark.parametrize("last_relu", [True, False])
def test_gradcam_behind_the_map_is_autograds(last_relu: bool) -> None:
    """The gradient goes through the map; every photo, every class of it."""
    torch.manual_seed(1)
    model = import_open_clip().CLIP(
        embed_dim=6, vision_cfg={"image_size": 32, "layers": 3, "width": 32, "head_width": 16,
                                 "patch_size": 8, "ls_init_value": 0.7},
        text_cfg={"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1})
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.double().eval()
    tower = tower_from_open_clip(model.visual).double().eval().requires_grad_(False)
    stack = make_stack(6, 8, 2, last_relu=last_relu).double()
    stack(units(30, 6, 3))
    layers = layers_of(stack)
    kept = plain.collected(layers, units(30, 6, 3), last_relu)
    head = AlignedHead.of(tower.head, AlignedSpace.folded(stack.eval())).double()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    rows, index = units(5, 8, 4), torch.tensor([1, 2, 3, 0, 0])
    present = [torch.tensor([1, 3]), torch.tensor([2])]
    found = gradcam(head, tower(pixels).tokens, (4, 4), rows, index, present, tau=0.2)

    def mapped(vector: Tensor) -> Tensor:
        return plain.affine(layers, vector, last_relu, kept)

    for image, classes, maps in zip(pixels, present, found, strict=True):
        left = [row for row, owner in enumerate(index.tolist())
                if owner == 0 or owner in classes.tolist()]
        for place, wanted in enumerate(classes.tolist()):
            own = [int(index[row]) for row in left].index(wanted)
            slow = plain.gradcam(model.visual, image[None], rows[left], own, 5.0, mapped)
            assert slow.max() > 0.9
            torch.testing.assert_close(maps[place].double(), slow, atol=2e-5, rtol=0)
