"""The grouping network against its formulas, and against transformers' GroupViT where installed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import pgseg
from torch import Tensor

from vpltool.core.group_maps import (
    GroupMaps,
    class_maps,
    group_maps,
    group_use,
    name_groups,
    with_background,
)
from vpltool.core.group_training import (
    GroupTraining,
    Objective,
    contrast,
    learning_rate,
    make_optimizer,
    train,
)
from vpltool.core.groups import (
    CaptionShape,
    GroupingBlock,
    GroupNetwork,
    GroupShape,
    TokenBlock,
    assign,
)
from vpltool.stages.train_groups import TrainGroupsSettings, shape_of

PAPER = shape_of(TrainGroupsSettings(text="own"))
SHAPE = replace(PAPER, side=16, patch=4, width=12, heads=2, depths=(2, 1, 1), groups=(6, 3), dim=8,
                hidden=16, caption=CaptionShape(8, 1, 2, 10, 50), npr=replace(PAPER.npr, hidden=16))
TRAINING = GroupTraining(
    iterations=20, warmup=4, lr_start=1e-4, lr=1e-2, lr_end=1e-3, weight_decay=0.05, clip=5.0,
    weights=(0.1, 0.1, 0.01), reject=0.1, precision=torch.float32, seed=0)


def drawn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def network_of(shape: GroupShape = SHAPE) -> GroupNetwork:
    torch.manual_seed(0)
    return GroupNetwork(shape)


def captions(count: int, seed: int = 5) -> Tensor:
    """Token numbers, the end token 49 at different places."""
    tokens = torch.randint(1, 49, (count, 10), generator=torch.Generator().manual_seed(seed))
    for row, end in zip(tokens, range(count), strict=True):
        row[3 + end % 6] = 49
        row[4 + end % 6 :] = 0
    return tokens


def test_the_paper_s_sizes_are_the_defaults() -> None:
    shape = PAPER
    assert (shape.width, shape.heads, shape.depths, shape.groups) == (384, 6, (6, 3, 3), (64, 8))
    assert (shape.side, shape.patch, shape.dim, shape.hidden) == (224, 16, 256, 4096)
    assert (shape.npr.rounds, shape.npr.momentum, shape.npr.hidden) == (10, 0.9, 4096)
    with torch.device("meta"):
        network = GroupNetwork(shape)
    assert network.vision.second.carry is not None
    mixer = network.vision.second.carry
    assert (mixer.fc.in_features, mixer.fc.out_features, mixer.proj.out_features) == (64, 192, 8)


def test_a_shape_comes_back_from_its_config() -> None:
    for shape in (SHAPE, replace(SHAPE, caption=None, of_text=False)):
        assert GroupShape.from_config(shape.to_config()) == shape


def test_each_patch_goes_to_one_group_with_the_soft_gradient() -> None:
    logits = drawn(2, 4, 9).requires_grad_()
    for noisy in (False, True):
        given = assign(logits, noisy=noisy)
        torch.testing.assert_close(given.sum(dim=1), torch.ones(2, 9))
        assert given.detach().round().allclose(given.detach(), atol=1e-6)
    hard = assign(logits, noisy=False)
    assert hard.argmax(dim=1).equal(logits.argmax(dim=1))
    weights = drawn(2, 4, 9, seed=1)
    torch.testing.assert_close(
        torch.autograd.grad((hard * weights).sum(), logits)[0],
        torch.autograd.grad((logits.softmax(dim=1) * weights).sum(), logits)[0])


def test_noise_chooses_as_likely_as_the_softmax_says() -> None:
    logits = torch.tensor([[[0.0], [1.0], [2.0]]]).expand(1, 3, 20000)
    torch.manual_seed(0)
    shares = assign(logits, noisy=True).mean(dim=2)
    torch.testing.assert_close(shares, logits[..., 0].softmax(dim=1), atol=0.02, rtol=0)


def test_merging_is_the_loops() -> None:
    torch.manual_seed(0)
    block = GroupingBlock(12, 2, 4).eval()
    groups, patches = drawn(1, 4, 12), drawn(1, 9, 12, seed=1)
    made = block(groups, patches)
    seen = block.norm_patches(patches)
    tokens = block.look(block.norm_groups(block.mixer(groups)), seen)
    torch.testing.assert_close(made.groups, tokens)
    logits = block.query(tokens) @ block.key(seen).mT / math.sqrt(12)
    torch.testing.assert_close(made.soft, logits.softmax(dim=1))
    # The map of the output is linear: it may as well be applied to each patch.
    values = F.linear(block.value(seen), block.out.weight)[0]
    taken = pgseg.merged(tokens[0].detach().numpy(), seen[0].detach().numpy(),
                         logits[0].detach().numpy(), values.detach().numpy())
    segments = torch.from_numpy(taken).float() + block.out.bias
    torch.testing.assert_close(made.segments[0], segments + block.mlp(segments), atol=1e-5,
                               rtol=1e-4)


def test_drop_path_leaves_the_mean_and_is_off_at_test() -> None:
    torch.manual_seed(0)
    block = TokenBlock(replace_shape(), drop_path=0.5)
    x = drawn(1, 5, 12)
    done = block.eval()(x)
    many = block.train()(x.expand(4000, -1, -1))
    assert any(photo.equal(x[0]) for photo in many[:20])
    torch.testing.assert_close(many.mean(dim=0), done[0], atol=0.05, rtol=0)


def replace_shape() -> object:
    from vpltool.core.blocks import BlockShape

    return BlockShape(12, 48, 2, 1e-5, "gelu")


def test_a_caption_does_not_see_what_comes_behind_its_end() -> None:
    network = network_of().eval()
    tokens = captions(4)
    other = tokens.clone()
    other[:, 9] = torch.where(tokens[:, 9] == 0, 7, tokens[:, 9])
    torch.testing.assert_close(network.embed_captions(tokens), network.embed_captions(other))


def test_maps_of_any_size_share_each_patch_among_the_groups() -> None:
    network = network_of().eval()
    pixels = drawn(2, 3, 24, 32)
    first, second = group_maps(network, pixels)
    assert first.first.shape == (6, 6, 8)
    assert first.second.shape == (3, 6, 8)
    for maps in (first, second):
        for part in (maps.first, maps.second):
            torch.testing.assert_close(part.sum(dim=0), torch.ones(6, 8))
        torch.testing.assert_close(maps.groups.norm(dim=-1), torch.ones(3))
    alone = group_maps(network, pixels[1:])[0]
    torch.testing.assert_close(alone.second, second.second, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.groups, second.groups, atol=1e-5, rtol=1e-4)


def test_the_second_map_is_the_product_of_both_assignments() -> None:
    network = network_of().eval()
    pixels = drawn(1, 3, 16, 16)
    maps, seen = group_maps(network, pixels)[0], network.vision(pixels)
    one, two = seen.stages
    wanted = torch.zeros(3, 16)
    for group in range(3):
        for patch in range(16):
            wanted[group, patch] = sum(two.soft[0, group, middle] * one.soft[0, middle, patch]
                                       for middle in range(6))
    torch.testing.assert_close(maps.second.flatten(1), wanted)


def maps_of(groups: Tensor, photo: Tensor, second: Tensor) -> GroupMaps:
    return GroupMaps(second, second, F.normalize(groups, dim=-1), F.normalize(photo, dim=-1))


@pytest.mark.parametrize("top", [1, 2, 5])
def test_names_of_groups_are_the_loops(top: int) -> None:
    maps = maps_of(drawn(3, 8), drawn(8, seed=1), drawn(3, 2, 2).softmax(dim=0))
    texts = F.normalize(drawn(6, 8, seed=2), dim=-1)
    found = name_groups(maps, texts, torch.tensor(20.0).log(), top)
    wanted = pgseg.group_names(maps.groups.double().numpy(), maps.photo.double().numpy(),
                               texts.double().numpy(), 20.0, top)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert name_groups(maps, texts, torch.tensor(0.0), 0).shape == (3, 6)


def test_a_patch_takes_its_strongest_group_s_names() -> None:
    second = torch.tensor([[[0.7, 0.1]], [[0.3, 0.9]]])
    scores = torch.tensor([[0.8, 0.0], [0.1, 0.5]])
    torch.testing.assert_close(class_maps(second, scores),
                               torch.tensor([[[0.8, 0.1]], [[0.0, 0.5]]]))


def test_a_background_leaves_the_strongest() -> None:
    scores = torch.tensor([[[0.8, 0.1]], [[0.0, 0.5]]])
    assert with_background(scores, 0.6).argmax(dim=0).tolist() == [[1, 0]]
    # A threshold above all scores leaves the strongest class where it is strongest.
    assert with_background(scores, 0.95).argmax(dim=0).tolist() == [[1, 0]]
    assert with_background(scores, 0.95)[0].max() > 0.79


def test_use_of_groups() -> None:
    apart = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]])
    assert group_use(apart) == (2, 0.0)
    close = torch.tensor([[[0.6, 0.4]], [[0.4, 0.6]]])
    assert group_use(close)[1] == pytest.approx(0.8 / 1.2)
    assert group_use(torch.ones(1, 2, 2))[1] == 0


def test_pair_contrast_is_the_loops() -> None:
    photos, spoken = (F.normalize(drawn(5, 8, seed=seed), dim=-1) for seed in (1, 2))
    found = contrast(photos, spoken, photos, spoken, torch.tensor(14.0).log())
    assert float(found) == pytest.approx(
        pgseg.pair_contrast(photos.double().numpy(), spoken.double().numpy(), 14.0), rel=1e-4)
    parts = [contrast(photos[part], spoken[part], photos, spoken, torch.tensor(14.0).log(), rank)
             for rank, part in enumerate((slice(0, 1), slice(1, 2)))]
    assert len({float(part) for part in parts}) == 2


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(TRAINING, step) for step in range(21)]
    assert rates[0] == 1e-4
    assert rates[4] == max(rates) == pytest.approx(1e-2)
    assert rates[2] == pytest.approx((1e-4 + 1e-2) / 2)
    assert rates[12] == pytest.approx((1e-2 + 1e-3) / 2)
    assert rates[20] == pytest.approx(1e-3)


def steps(start: int = 0, count: int = 20, objective: Objective | None = None,
          optimizer: torch.optim.Optimizer | None = None) -> tuple[Objective, list[Tensor]]:
    objective = objective or Objective(network_of(), TRAINING)
    network = objective.network
    batch = drawn(6, 3, 16, 16), captions(6)
    records = list(train(objective, network, optimizer or make_optimizer(network, TRAINING),
                         TRAINING, [batch] * count, start=start))
    return objective, [torch.stack(record) for record in records]


def test_training_learns_pairs_by_heart() -> None:
    losses = steps()[1]
    assert losses[-1][0] < losses[0][0] / 2
    assert torch.stack(losses).isfinite().all()


def test_a_step_depends_on_its_number_only() -> None:
    """Whatever chance was asked for in between; so a resumed training takes the same steps."""
    whole = steps(count=3)
    torch.manual_seed(99)
    again = steps(count=3)
    assert torch.stack(whole[1]).equal(torch.stack(again[1]))
    for name, tensor in whole[0].state_dict().items():
        assert tensor.equal(again[0].state_dict()[name]), name


def test_scales_norms_and_biases_do_not_decay() -> None:
    groups = make_optimizer(network_of(), TRAINING).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert all(item.dim() >= 2 for item in groups[0]["params"])
    assert all(item.dim() < 2 for item in groups[1]["params"])


def test_parts_do_not_change_the_statistics_of_photos() -> None:
    network = network_of().train()
    before = network.project_vision[1].running_mean.clone()
    network.embed_parts(network.vision(drawn(4, 3, 16, 16)))
    assert network.project_vision.training
    assert network.project_vision[1].running_mean.equal(before)


def test_it_is_groupvit_of_transformers(tmp_path: Path) -> None:
    """The same weights, the same vectors and assignments, without its code or names in ours."""
    transformers = pytest.importorskip("transformers")
    from vpltool.clip.catalogue import mend_torchvision
    from vpltool.clip.weights import read_weights, recognise
    from vpltool.engine.groups import is_groupvit, take_weights

    # Also where no test before has imported timm, with a torchvision for another torch.
    mend_torchvision()
    torch.manual_seed(0)
    theirs = transformers.GroupViTModel(transformers.GroupViTConfig(
        projection_dim=8, projection_intermediate_dim=16,
        vision_config={"hidden_size": 12, "intermediate_size": 48, "depths": [2, 1, 1],
                       "num_group_tokens": [6, 3, 0], "num_output_groups": [6, 3, 3],
                       "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
        text_config={"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 10,
                     "eos_token_id": 49},
    )).eval()
    with torch.no_grad():
        for tensor in [*theirs.parameters(), *theirs.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape))
    theirs.save_pretrained(tmp_path)
    assert is_groupvit(read_weights(recognise(tmp_path / "model.safetensors")))
    ours = network_of(replace(SHAPE, of_photos=False, of_text=False)).eval()
    take_weights(ours, tmp_path / "model.safetensors")
    pixels, tokens = drawn(3, 3, 16, 16), captions(3)
    with torch.no_grad():
        made = theirs(input_ids=tokens, pixel_values=pixels)
        shares = [part for part in theirs.vision_model(pixels, output_attentions=True).attentions
                  if part is not None]
        seen = ours.vision(pixels)
        torch.testing.assert_close(ours.embed_photos(seen), made.image_embeds)
        torch.testing.assert_close(ours.embed_captions(tokens), made.text_embeds)
    for stage, share in zip(seen.stages, shares, strict=True):
        torch.testing.assert_close(stage.soft, share)
