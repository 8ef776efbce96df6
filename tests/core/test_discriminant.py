"""The linear discriminant equals the one written out, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import discriminant as reference

from vpltool.core.discriminant import (
    Moments,
    discriminant,
    label_shares,
)
from vpltool.core.distributed import ALONE
from vpltool.core.phase_one import Pixels
from vpltool.methods.estimators.discriminant import (
    Settings,
    choose_instances,
    tag_precision,
    tagged_discriminant,
)


def _moments(photos: list[tuple[torch.Tensor, torch.Tensor]]) -> Moments:
    moments = Moments.zeros(photos[0][1].shape[1], photos[0][0].shape[1], torch.device("cpu"))
    for tokens, shares in photos:
        moments.add(tokens, shares)
    return moments


@pytest.mark.parametrize("shrinkage", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_it_is_the_reference(shrinkage: float, prior: float) -> None:
    """Soft shares, unlabelled patches, and a class without any."""
    rng = torch.Generator().manual_seed(0)
    photos = []
    for patches in (30, 50):
        shares = torch.rand(patches, 4, generator=rng) ** 4
        shares = shares / shares.sum(dim=1, keepdim=True) * torch.rand(patches, 1, generator=rng)
        shares[:, 2] = 0
        photos.append((torch.randn(patches, 6, generator=rng) + 3 * shares[:, :1], shares))
    weight, bias = discriminant(_moments(photos), shrinkage, prior)
    tokens, shares = (torch.cat(parts).double().numpy() for parts in zip(*photos, strict=True))
    expected_weight, expected_bias = reference.discriminant(tokens, shares, shrinkage, prior)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-4, atol=1e-5)
    assert bias[2] == -1e4


def test_it_is_scikit_learn_s_with_hard_labels() -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 400)
    tokens = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8)) + labels[:, None]
    theirs = analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(tokens, labels)
    shares = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float()
    weight, bias = discriminant(_moments([(torch.from_numpy(tokens).float(), shares)]), 0.2, 1.0)
    scores = tokens @ weight.double().numpy().T + bias.double().numpy()
    np.testing.assert_allclose(scores, theirs.decision_function(tokens), rtol=1e-3, atol=1e-3)


def test_the_order_of_photos_does_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    photos = [(torch.randn(20, 5, generator=rng), torch.rand(20, 3, generator=rng))
              for _ in range(4)]
    one, other = (discriminant(_moments(order), 0.1, 0.5) for order in (photos, photos[::-1]))
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def test_shares_are_those_of_each_patch() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 7, 255], size=(12, 20)).astype(np.uint8)
    found = label_shares(torch.from_numpy(labels), 3)
    np.testing.assert_allclose(found, reference.shares_of(labels, 3))


def _tagged_pixels(width: int = 5, seed: int = 0) -> Pixels:
    """Photos of two classes and both, whose patches are drawn around a mean of each class."""
    rng = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(3, width, generator=rng)
    tags = [torch.tensor(shown) for shown in ([1], [2], [1, 2], [1], [2, 1])]
    true, photo_of = [], []
    for number, shown in enumerate(tags):
        true.append(torch.cat([torch.zeros(1, dtype=torch.long), shown])[
            torch.randint(len(shown) + 1, (40,), generator=rng)])
        photo_of.append(torch.full((40,), number))
    truth = torch.cat(true)
    embeddings = means[truth] + torch.randn(len(truth), width, generator=rng)
    labels = truth.where(torch.rand(len(truth), generator=rng) < 0.3, -1)
    return Pixels(embeddings, torch.cat(photo_of), labels, tags)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_it_teaches_itself_as_in_plain_loops(rounds: int) -> None:
    pixels = _tagged_pixels()
    weight, bias = tagged_discriminant(pixels, 3, Settings(rounds=rounds), ALONE)
    expected = reference.tagged_discriminant(
        pixels.embeddings.double().numpy(), pixels.labels.tolist(), pixels.photo_of.tolist(),
        [shown.tolist() for shown in pixels.tags], 3, rounds, 0.8, 0.1, 1.0)
    np.testing.assert_allclose(weight, expected[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, expected[1], rtol=1e-3, atol=1e-4)


def test_a_linear_map_of_the_pixels_changes_no_score() -> None:
    """Why one recipe serves all encoders: up to shrinkage, only the data's own shape counts."""
    pixels = _tagged_pixels()
    rng = torch.Generator().manual_seed(1)
    # Stretched by up to 30, turned, and moved.
    turn = torch.linalg.qr(torch.randn(5, 5, generator=rng)).Q
    mapped = (pixels.embeddings * torch.tensor([0.1, 0.3, 1, 2, 3])) @ turn + 4
    scores = []
    for embeddings in (pixels.embeddings, mapped):
        weight, bias = tagged_discriminant(
            Pixels(embeddings, pixels.photo_of, pixels.labels, pixels.tags), 3,
            Settings(rounds=4, shrinkage=1e-6), ALONE)
        scores.append((embeddings @ weight.T + bias).softmax(dim=-1))
    torch.testing.assert_close(scores[0], scores[1], atol=2e-2, rtol=0)


def test_labels_of_its_own_are_among_the_tags() -> None:
    """A class that no photo is tagged with learns nothing, wherever its seeds would lead."""
    pixels = _tagged_pixels()
    weight, bias = tagged_discriminant(pixels, 4, Settings(rounds=2, confidence=0.0), ALONE)
    assert not weight[3].any()
    assert bias[3] == -1e4


def _scenes(seed: int = 0) -> tuple[Pixels, torch.Tensor]:
    """Photos whose salient patches are an object, or a scene that all photos share; the truth.

    The seeds do not tell a photo's two tags apart: all have the first one's label.
    """
    rng = torch.Generator().manual_seed(seed)
    tags = [torch.tensor(shown) for shown in ([1, 2], [1, 3], [2, 3], [1, 2], [2, 3], [1, 3])]
    truth = torch.cat([torch.cat([torch.zeros(60), *(torch.full((10,), float(tag))
                                                     for tag in shown)]) for shown in tags]).long()
    photo_of = torch.arange(len(tags)).repeat_interleave(80)
    embeddings = 4 * torch.eye(6)[truth] + torch.randn(len(truth), 6, generator=rng)
    labels = torch.full_like(truth, -1)
    labels[(truth == 0) & (torch.rand(len(truth), generator=rng) < 0.5)] = 0
    salient = (truth > 0) | (torch.rand(len(truth), generator=rng) < 0.2)
    first = torch.stack([shown[0] for shown in tags])[photo_of]
    labels = torch.where(salient & (labels != 0), first, labels)
    return Pixels(embeddings, photo_of, labels, tags), truth


def test_instances_are_those_of_plain_loops() -> None:
    pixels, _ = _scenes()
    settings = Settings(instances=0.1)
    found = choose_instances(pixels, 4, settings, ALONE)
    assert found.tolist() == reference.choose_instances(
        pixels.embeddings.double().numpy(), pixels.labels.tolist(), pixels.photo_of.tolist(),
        [shown.tolist() for shown in pixels.tags], 4, 0.1, settings.shrinkage, 3)


def test_instances_tell_the_tags_of_a_photo_apart() -> None:
    """Photos without a tag do, where the seeds do not."""
    pixels, truth = _scenes()
    seeds = pixels.labels > 0
    chosen = choose_instances(pixels, 4, Settings(instances=0.1), ALONE)
    assert (pixels.labels[seeds] == truth[seeds]).float().mean() < 0.6
    assert (chosen[chosen > 0] == truth[chosen > 0]).float().mean() > 0.95
    assert set(chosen.tolist()) == {-1, 0, 1, 2, 3}


def test_a_tag_that_every_photo_has_is_told_from_the_mean_of_all() -> None:
    pixels, _ = _scenes()
    everywhere = [torch.cat([shown, torch.tensor([4])]) for shown in pixels.tags]
    pixels = Pixels(pixels.embeddings, pixels.photo_of, pixels.labels, everywhere)
    chosen = choose_instances(pixels, 5, Settings(instances=0.05), ALONE)
    assert (chosen == 4).sum() > 0
    assert torch.equal(chosen == 0, pixels.labels == 0)


def test_tag_precision_is_scikit_learn_s() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = torch.Generator().manual_seed(0)
    shares, tagged = torch.rand(30, 5, generator=rng), torch.rand(30, 5, generator=rng) < 0.3
    tagged[:, 3], tagged[:, 4] = True, False
    wanted = np.mean([metrics.average_precision_score(tagged[:, k], shares[:, k])
                      for k in range(3)])
    assert tag_precision(shares, tagged, ALONE) == pytest.approx(wanted)
    assert tag_precision(shares[:, 3:], tagged[:, 3:], ALONE) == 1


def _precision(pixels: Pixels, weight: torch.Tensor, bias: torch.Tensor) -> float:
    """How well shares of the classes, photo by photo, tell the tags."""
    likely = (pixels.embeddings @ weight.T + bias).softmax(dim=-1)
    shares = torch.stack([likely[pixels.photo_of == number].mean(dim=0)
                          for number in range(len(pixels.tags))])
    tagged = torch.tensor([[label in shown.tolist() for label in range(1, len(weight))]
                           for shown in pixels.tags])
    return tag_precision(shares[:, 1:], tagged, ALONE)


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("instances_win", [True, False])
def test_of_seeds_and_instances_those_that_tell_the_tags_are_kept(
        rounds: int, instances_win: bool) -> None:
    pixels, truth = _scenes()
    if not instances_win:
        # True seeds; and a scene that goes with a tag tells photos apart better than the object.
        tags = [torch.tensor([1 + number % 3]) for number in range(6)]
        scene = (truth == 0) & (torch.arange(len(truth)) % 3 > 0)
        own = torch.cat(tags)[pixels.photo_of]
        rng = torch.Generator().manual_seed(3)
        pixels = Pixels(2.5 * torch.eye(8)[torch.where(
            scene, torch.where(pixels.photo_of < 3, 3 + own, torch.zeros_like(own)),
            torch.where(truth > 0, own, truth))] + 0.7 * torch.randn(len(truth), 8, generator=rng),
            pixels.photo_of, torch.where(truth > 0, own, torch.where(scene, -1, 0)), tags)
    settings = Settings(rounds=rounds, instances=0.1)
    labels = choose_instances(pixels, 4, settings, ALONE)
    starts = [tagged_discriminant(Pixels(pixels.embeddings, pixels.photo_of, seeds, pixels.tags),
                                  4, Settings(rounds=rounds), ALONE)
              for seeds in (pixels.labels, labels)]
    precisions = [_precision(pixels, *start) for start in starts]
    assert not torch.equal(starts[0][0], starts[1][0])
    assert (precisions[1] > precisions[0]) == instances_win
    found = tagged_discriminant(pixels, 4, settings, ALONE)
    torch.testing.assert_close(found, starts[instances_win])
