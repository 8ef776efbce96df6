"""The linear discriminant equals the one written out, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import discriminant as reference

from vpltool.core.discriminant import Moments, discriminant, label_shares


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
