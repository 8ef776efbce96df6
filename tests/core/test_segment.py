"""From a decoder to labels: mirrored copies, scales, sizes; and the decoder that begins as CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from as_methods import dense_cam
from reference import weclip
from torch import Tensor

from vpltool.clip.load import Clip, load_clip
from vpltool.core.grids import layers_of
from vpltool.core.segment import (
    FINENESS,
    keep_likely,
    labels_of,
    logits_of,
    only_classes,
    probabilities_of,
    segment,
)
from vpltool.core.segmenter import Decoder, DecoderShape

INDEX = torch.tensor([1, 2, 2, 3, 0, 0])
DIM, WIDTH = 16, 32


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip("x", str(tiny_clip), torch.device("cpu"))


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def make_decoder(*, residual: bool = False, tau: float = 0.07) -> Decoder:
    torch.manual_seed(1)
    shape = DecoderShape((0, 2), WIDTH, DIM, width=16, blocks=1, heads=2, residual=residual)
    return Decoder(shape, unit(6, DIM, seed=2), INDEX, tau).eval()


def some_photos(height: int = 24, width: int = 40) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.75, 1.5)])
def test_flip_averaging_is_equivariant(scales: tuple[float, ...], clip: Clip) -> None:
    decoder, photos = make_decoder(), some_photos()
    found = segment(clip.vision, decoder, photos, scales, flip=True)
    assert tuple(found.shape) == (2, 4, 3 * FINENESS, 5 * FINENESS)
    mirrored = segment(clip.vision, decoder, photos.flip(3), scales, flip=True)
    torch.testing.assert_close(mirrored.flip(3), found, atol=1e-5, rtol=1e-4)
    plain = segment(clip.vision, decoder, photos, scales)
    assert not torch.allclose(plain, found, atol=1e-3), "else this would not test it"
    both = (plain + segment(clip.vision, decoder, photos.flip(3), scales).flip(3)) / 2
    torch.testing.assert_close(both, found, atol=1e-5, rtol=1e-4)


def test_scales_are_averaged(clip: Clip) -> None:
    decoder, photos = make_decoder(), some_photos(32, 32)
    whole, half = (segment(clip.vision, decoder, photos, [scale]) for scale in (1, 0.5))
    found = segment(clip.vision, decoder, photos, [1, 0.5])
    torch.testing.assert_close(found, (whole + half) / 2)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 16, 16))
    assert not torch.allclose(whole, half, atol=1e-3)


@pytest.mark.parametrize(("scale", "grid"), [(0.75, (2, 4)), (1.3, (4, 6)), (0.1, (1, 1))])
def test_a_scale_is_taken_to_the_nearest_patch(scale: float, grid: tuple[int, int], clip: Clip,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """3×5 patches at 0.75 are 2.25×3.75: down on one side, up on the other."""
    seen, forward = [], type(clip.vision).forward

    def watched(self: Any, pixels: Tensor, **options: Any) -> Any:
        seen.append((pixels.shape[2] // 8, pixels.shape[3] // 8))
        return forward(self, pixels, **options)

    monkeypatch.setattr(type(clip.vision), "forward", watched)
    segment(clip.vision, make_decoder(), some_photos(), [scale])
    assert seen == [grid]


def test_logits_are_averaged_as_weclip_does(clip: Clip) -> None:
    decoder, photos = make_decoder(), some_photos(32, 32)
    views = []
    for grid in ((4, 4), (3, 3)):
        for mirrored in (False, True):
            seen = photos.flip(3) if mirrored else photos
            if grid != (4, 4):
                seen = F.interpolate(seen, size=(24, 24), mode="bicubic", antialias=True)
            encoded = clip.vision(seen, attention=False, layers=(0, 2))
            assert encoded.layers is not None
            assert encoded.patches is not None
            views.append((logits_of(decoder, encoded.layers, encoded.patches, grid), mirrored))
    found = segment(clip.vision, decoder, photos, (1, 0.75), flip=True, average="logits")
    for photo in range(2):
        wanted = weclip.average([(view[photo], mirrored) for view, mirrored in views])
        torch.testing.assert_close(found[photo], wanted.softmax(dim=0), atol=1e-5, rtol=1e-4)
    plain = segment(clip.vision, decoder, photos, (1, 0.75), flip=True)
    assert not torch.allclose(plain, found, atol=1e-4), "else the choice would mean nothing"
    for average in ("logits", "probabilities"):
        alone = segment(clip.vision, decoder, photos, average=average)
        torch.testing.assert_close(alone, segment(clip.vision, decoder, photos))


def test_photos_of_a_batch_do_not_touch_each_other(clip: Clip) -> None:
    decoder, photos = make_decoder(), some_photos()
    found = segment(clip.vision, decoder, photos, (1, 0.75), flip=True)
    for number in range(2):
        alone = segment(clip.vision, decoder, photos[number : number + 1], (1, 0.75), flip=True)
        torch.testing.assert_close(alone[0], found[number], atol=1e-5, rtol=1e-4)


def test_labels_are_at_the_photos_size() -> None:
    probabilities = torch.zeros(3, 2, 2)
    for place, label in enumerate((2, 0, 1, 2)):
        probabilities[label, place // 2, place % 2] = 1
    found = labels_of(probabilities, (30, 50))
    assert found.shape == (30, 50)
    assert found.dtype == np.uint8
    assert [found[y, x] for y in (3, 26) for x in (5, 44)] == [2, 0, 1, 2]


def test_keep_likely() -> None:
    probabilities = torch.full((4, 3, 3), 0.01)
    probabilities[2, 1, 1], probabilities[3, 0, 0] = 0.05, 0.0499
    scores, classes = keep_likely(probabilities)
    assert classes.tolist() == [0, 2], "the background stays in any case"
    assert torch.equal(scores, probabilities[[0, 2]])
    assert keep_likely(probabilities, least=0.001)[1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("tau", [0.02, 0.07])
def test_a_residual_decoder_begins_as_dense_clip(tau: float) -> None:
    grid = (3, 5)
    patches, layers = unit(2, 15, DIM, seed=4), torch.randn(2, 2, 15, WIDTH)
    decoder = make_decoder(residual=True, tau=tau)
    torch.testing.assert_close(decoder.embeddings(layers, patches, grid), patches)
    found = decoder.logits(patches, grid).softmax(dim=1)
    for photo in range(2):
        for place in range(15):
            heat = (decoder.prototypes @ patches[photo, place] / tau).softmax(dim=0)
            wanted = [float(heat[index == INDEX].sum()) for index in range(4)]
            assert found[photo, :, place // 5, place % 5].tolist() == pytest.approx(wanted,
                                                                                  abs=1e-5)
    maps = dense_cam(patches, grid, decoder.prototypes, INDEX, [torch.arange(1, 4)] * 2, tau=tau)
    torch.testing.assert_close(torch.stack(maps), found[:, 1:], atol=1e-5, rtol=1e-4)
    other = make_decoder().embeddings(layers, patches, grid)
    assert not torch.allclose(other, patches, atol=0.1)


def test_a_residual_decoder_can_leave_its_start() -> None:
    """Zero weights at the end of it must not keep it from learning."""
    decoder = make_decoder(residual=True).train()
    patches, layers = unit(1, 6, DIM, seed=4), torch.randn(1, 2, 6, WIDTH)
    decoder.logits(decoder.embeddings(layers, patches, (2, 3)), (2, 3))[:, 1].mean().backward()
    gradient = decoder.project.weight.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_decoder_is_rebuilt_from_its_config() -> None:
    decoder = make_decoder(residual=True, tau=0.03)
    again = Decoder.from_config(decoder.config)
    again.load_state_dict(decoder.state_dict())
    assert again.shape == decoder.shape
    patches, layers = unit(1, 6, DIM, seed=4), torch.randn(1, 2, 6, WIDTH)
    torch.testing.assert_close(probabilities_of(again.eval(), layers, patches, (2, 3)),
                               probabilities_of(decoder, layers, patches, (2, 3)))


def test_layers_of() -> None:
    stored = torch.arange(3.0)[None, :, None, None].expand(2, 3, 4, 5)
    assert layers_of(stored, [1, 4, 7], [7, 1])[0, :, 0, 0].tolist() == [2, 0]
    assert layers_of(stored, [1, 4, 7], [1, 4, 7]) is stored
    with pytest.raises(KeyError):
        layers_of(stored, [1, 4, 7], [2])


def test_only_classes() -> None:
    """What the others had is shared; a pixel that had nothing else stays without a class."""
    field = torch.tensor([[[0.2, 0.0]], [[0.5, 1.0]], [[0.3, 0.0]]])
    found = only_classes(field, [2])
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.4, 0.0, 0.6]))
    assert found[:, 0, 1].tolist() == [0, 0, 0]
    assert labels_of(found, (1, 2)).tolist() == [[2, 0]]


def test_a_decoder_in_half_precision_is_near_float32() -> None:
    decoder, grid = make_decoder(), (3, 5)
    layers = torch.randn(2, 2, 15, WIDTH, generator=torch.Generator().manual_seed(5))
    exact, rough = (logits_of(decoder, part, None, grid) for part in (layers, layers.bfloat16()))
    assert rough.dtype == torch.float32
    apart = (exact - rough).norm() / exact.norm()
    assert 0 < float(apart) < 0.03


def test_patch_embeddings_are_made_only_for_a_residual_decoder(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    forward = clip.vision.forward
    monkeypatch.setattr(clip.vision, "forward", lambda *given, **options: (
        asked.append(options["patches"]), forward(*given, **options))[1])
    plain, residual = (segment(clip.vision, make_decoder(residual=own), some_photos())
                       for own in (False, True))
    assert asked == ["none", "block"]
    assert not torch.allclose(plain, residual, atol=1e-3)
