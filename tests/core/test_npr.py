"""Prototypes of PGSeg against its formulas in loops; each defect of the released code kept out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import pgseg
from torch import Tensor

from vpltool.core.group_training import GroupTraining, Objective
from vpltool.core.groups import GroupNetwork
from vpltool.core.npr import Prototypes, Reconstruction, best_matchings, prototype_contrast
from vpltool.stages.train_groups import TrainGroupsSettings, shape_of

SHAPE = shape_of(TrainGroupsSettings(
    side=16, patch=4, width=12, heads=2, depths="1,1,1", groups="6,3", dim=8, hidden=16,
    drop_path=0, npr_hidden=16))
TRAINING = GroupTraining(
    iterations=4, warmup=1, lr_start=1e-4, lr=1e-2, lr_end=1e-4, weight_decay=0.05, clip=5.0,
    weights=(0.1, 0.1, 0.01), reject=0.1, precision=torch.float32, seed=0)


def drawn(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def pairs(count: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    return drawn(count, 3, 16, 16, seed=seed), drawn(count, 8, seed=seed + 1)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_matchings_are_those_of_each_problem(count: int) -> None:
    similarity = drawn(9, count, count)
    similarity[1] = similarity[1].round()
    similarity[2] = 0
    found = best_matchings(similarity)
    assert found.sort(dim=1).values.equal(torch.arange(count).expand(9, -1))
    for problem, columns in zip(similarity.double().numpy(), found.tolist(), strict=True):
        best = pgseg.hungarian(problem)
        if count < 6:
            assert sum(problem[range(count), best]) == pytest.approx(
                sum(problem[range(count), pgseg.matching(problem)]))
        assert sum(problem[range(count), columns]) == pytest.approx(
            sum(problem[range(count), best]))


def test_prototypes_of_each_photo_are_the_loops() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(4, 6, tau=1.0, rounds=10, momentum=0.9)
    tokens = 2 * drawn(3, 15, 6)
    found = prototypes.estimate(tokens)
    for photo, own in zip(tokens, found, strict=True):
        wanted = pgseg.em(photo.double().numpy(), prototypes.average.double().numpy(), 1.0)
        np.testing.assert_allclose(own.numpy(), wanted, atol=1e-3)


def test_the_moving_average_is_its_formula() -> None:
    prototypes = Prototypes(4, 6, tau=1.0, rounds=2, momentum=0.9)
    before = prototypes.average.clone()
    found = prototypes.estimate(drawn(3, 15, 6))
    prototypes.update(found)
    torch.testing.assert_close(prototypes.average,
                               F.normalize(0.9 * before + 0.1 * found.mean(dim=0), dim=-1))


def test_reconstruction_is_the_loops() -> None:
    torch.manual_seed(0)
    part = Reconstruction(6, 16, 0.5).eval()
    tokens, mu = drawn(2, 10, 6), F.normalize(drawn(2, 4, 6, seed=3), dim=-1)
    wanted = np.stack([pgseg.rebuilt(photo, own, 0.5) for photo, own in
                       zip(tokens.double().numpy(), mu.double().numpy(), strict=True)])
    made = part.mlp(torch.from_numpy(wanted).float().flatten(0, 1)).view(2, 10, 6)
    torch.testing.assert_close(part(tokens, mu), made, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("reject", [0.0, 0.1, 0.6])
def test_contrast_is_the_loops(count: int, reject: float) -> None:
    groups, mu = drawn(4, count, 6), F.normalize(drawn(4, count, 6, seed=1), dim=-1)
    found = prototype_contrast(groups, mu, torch.tensor(10.0).log(), reject)
    wanted = pgseg.contrast_with_prototypes(groups.double().numpy(), mu.double().numpy(), 10.0,
                                            reject)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_a_scale_above_100_counts_as_100() -> None:
    groups, mu = drawn(2, 3, 6), F.normalize(drawn(2, 3, 6, seed=1), dim=-1)
    much, most = (prototype_contrast(groups, mu, torch.tensor(scale).log(), 0.1)
                  for scale in (500.0, 100.0))
    torch.testing.assert_close(much, most)


def test_no_gradient_reaches_prototypes() -> None:
    prototypes = Prototypes(3, 6, tau=1.0, rounds=2, momentum=0.9)
    tokens = drawn(2, 8, 6).requires_grad_()
    assert not prototypes.estimate(tokens).requires_grad
    assert not [*prototypes.parameters()]


# Defects of the released code


def test_averages_of_photos_move_in_training() -> None:
    """There, they never do: the flag that would let them stays off."""
    torch.manual_seed(0)
    objective = Objective(GroupNetwork(SHAPE), TRAINING).train()
    network = objective.network
    before = {name: buffer.clone() for name, buffer in network.named_buffers()
              if name.endswith("average")}
    assert len(before) == 3
    objective(*pairs())
    for name, buffer in network.named_buffers():
        if name.endswith("average"):
            assert not buffer.allclose(before[name]), name


def test_nothing_moves_in_evaluation() -> None:
    """There, the prototypes of text do."""
    torch.manual_seed(0)
    objective = Objective(GroupNetwork(SHAPE), TRAINING).eval()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    objective(*pairs())
    for name, tensor in objective.state_dict().items():
        assert tensor.equal(before[name]), name


def test_prototypes_of_text_are_vectors() -> None:
    """There, a number for each: the cosine of two numbers is 1 or -1, and its gradient is zero."""
    torch.manual_seed(0)
    network = GroupNetwork(SHAPE).train()
    assert network.text_prototypes is not None
    assert network.text_prototypes.average.shape == (3, 8)
    objective = Objective(network, TRAINING)
    seen = network.vision(pairs()[0])
    loss = objective._of_text(seen, network.embed_captions(pairs()[1]))
    slope = torch.autograd.grad(loss, network.project_vision[3].weight)[0]
    assert (slope != 0).float().mean() > 0.9
    parts = F.normalize(network.embed_parts(seen), dim=-1)
    cosines = parts @ network.text_prototypes.average.T
    assert cosines.abs().max() < 1 - 1e-3


def test_rejection_reads_the_matched_pair() -> None:
    """There, it reads the similarity to the first prototype, whichever is matched."""
    mu = torch.eye(3)[None]
    # Group 0 is nearest to prototype 2, and farthest from the first.
    groups = torch.tensor([[[-1.0, 0.2, 0.9], [0.9, 0.1, 0.3], [0.3, 0.8, 0.1]]])
    cosines = F.normalize(groups, dim=-1) @ mu.mT
    assert best_matchings(cosines)[0].tolist() == [2, 0, 1]
    kept = groups.clone().requires_grad_()
    prototype_contrast(kept, mu, torch.tensor(10.0).log(), 0.5).backward()
    assert kept.grad is not None
    assert (kept.grad[0].abs().sum(dim=-1) > 0).all()
    # The pair (0, 2) is the weakest match here, and the only one that is rejected.
    weak = torch.tensor([[[-1.0, -0.9, -0.8], [0.9, 0.1, 0.3], [0.3, 0.8, 0.1]]])
    for tokens, reject in ((groups, 0.5), (weak, 0.2)):
        assert float(prototype_contrast(tokens, mu, torch.tensor(10.0).log(), reject)
                     ) == pytest.approx(pgseg.contrast_with_prototypes(
                         tokens.double().numpy(), mu.double().numpy(), 10.0, reject), rel=1e-4)


def test_prototypes_come_from_what_a_stage_begins_with() -> None:
    torch.manual_seed(0)
    network = GroupNetwork(SHAPE).eval()
    stages: list[Tensor] = []
    for stage in (network.vision.first, network.vision.second):
        stage.register_forward_pre_hook(lambda _module, given: stages.append(given[0]))
    seen = network.vision(pairs()[0])
    for stage, tokens, found in zip((network.vision.first, network.vision.second), stages,
                                    seen.prototypes, strict=True):
        assert stage.prototypes is not None
        torch.testing.assert_close(found, stage.prototypes.estimate(tokens))
    assert stages[1].equal(seen.stages[0].segments)


def test_no_option_is_without_effect() -> None:
    """There, one returns the input as it is."""
    made = {}
    for name, shape in {
            "both": SHAPE, "plain": replace(SHAPE, npr=replace(SHAPE.npr, reconstruct=False)),
            "none": replace(SHAPE, of_photos=False, of_text=False),
            "tau": replace(SHAPE, npr=replace(SHAPE.npr, tau=0.2)),
            "rounds": replace(SHAPE, npr=replace(SHAPE.npr, rounds=1))}.items():
        torch.manual_seed(0)
        objective = Objective(GroupNetwork(shape), TRAINING).train()
        torch.manual_seed(1)
        made[name] = objective(*pairs())[1]
    assert made["none"][1:].equal(torch.zeros(3))
    assert (made["plain"] > 0).all()
    names = list(made)
    for index, one in enumerate(names):
        for other in names[index + 1:]:
            assert not made[one].allclose(made[other]), (one, other)
