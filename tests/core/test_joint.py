"""Joint training: which rate each part of an encoder learns at."""

import pytest
from torch import nn
from trainings import training_with

from vpltool.clip.encoders import find_encoder, random_encoder
from vpltool.core.joint import JointSettings, Pair, joint_optimizer
from vpltool.core.segmenter import LightHead


def rates(name: str, layers: tuple[int, ...], **joint: float) -> tuple[Pair, dict[int, float]]:
    """A pair, and the factor on the learning rate of each of its parameters."""
    encoder = random_encoder(find_encoder(name, ()), 0)
    head = LightHead(layers, encoder.vision.width, 3, 8)
    pair = Pair(encoder.vision, head, JointSettings(average=0.999, **joint))
    optimizer = joint_optimizer(pair, training_with(iters=1))
    return pair, {id(part): group["scale"] for group in optimizer.param_groups
                  for part in group["params"]}


def factors(found: dict[int, float], module: nn.Module) -> set[float]:
    return {found[id(part)] for part in module.parameters() if id(part) in found}


def test_early_blocks_learn_more_slowly() -> None:
    pair, found = rates("timm:vit_tiny_patch16_224", (11,), layer_decay=0.5, head_lr=10.0)
    tower = pair.now.tower
    assert tower is not None
    assert factors(found, tower.head.block) == {1.0}
    assert factors(found, tower.blocks[10]) == {0.5}
    assert factors(found, tower.blocks[0]) == {0.5**11}
    assert factors(found, tower.conv) == {found[id(tower.positions)]} == {0.5**12}
    assert factors(found, pair.now.network) == {10.0}


def test_an_encoder_with_its_own_code_is_cut_into_its_levels() -> None:
    pair, found = rates("timm:mobilenetv3_small_050", (1,), layer_decay=0.5, head_lr=10.0)
    tower = pair.now.tower
    assert tower is not None
    along = [found[id(part)] for part in tower.parameters()]
    assert along == sorted(along)
    assert {*along} == {0.5**count for count in range(tower.depth)}


@pytest.mark.parametrize("decay", [1.0, 0.75])
def test_every_parameter_is_trained_once(decay: float) -> None:
    pair, found = rates("timm:mobilenetv3_small_050", (1,), layer_decay=decay)
    assert {*found} == {id(part) for part in pair.now.parameters() if part.requires_grad}
    groups = joint_optimizer(pair, training_with(iters=1)).param_groups
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert all((group["weight_decay"] > 0) == (part.dim() > 1)
               for group in groups for part in group["params"])
