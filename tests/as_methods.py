"""Methods called with tensors: each function builds what its method is given, and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vpltool.core.phase_one import Pixels
from vpltool.core.vit import Head
from vpltool.methods.cams import dense, gradcam, lpcam, salient, surgery
from vpltool.methods.embeddings import naclip, proxyclip, sclip
from vpltool.methods.estimators import kmeans, means
from vpltool.methods.estimators import lpcam as lpcam_estimator
from vpltool.methods.inputs import CamBatch, EmbeddingBatch, PhotoMaps
from vpltool.methods.refiners import attention, cpal, patches, transport


def _batch(name: str, tensor: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
           present: Sequence[Tensor], **more: Any) -> CamBatch:
    ids = [str(number) for number in range(len(present))]
    return CamBatch(ids, grid, {name: tensor}, present, rows, index, **more)


def gradcam_of(head: Head, tokens: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
               present: Sequence[Tensor], **values: Any) -> list[Tensor]:
    """GradCAM on the input of the last block."""
    batch = _batch("tokens", tokens, grid, rows, index, present, head=head)
    return gradcam.make_cams(batch, gradcam.Settings(**values))


def dense_cam(tensor: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
              present: Sequence[Tensor], **values: Any) -> list[Tensor]:
    """Class probabilities of patches."""
    batch = _batch("patches", tensor, grid, rows, index, present)
    return dense.make_cams(batch, dense.Settings(**values))


def salient_cam(tensor: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
                present: Sequence[Tensor], **values: Any) -> list[Tensor]:
    """Saliency, divided among the classes."""
    batch = _batch("patches", tensor, grid, rows, index, present)
    return salient.make_cams(batch, salient.Settings(**values))


def class_minus_context_cam(tensor: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
                            context_of: Tensor, present: Sequence[Tensor]) -> list[Tensor]:
    """LPCAM's maps."""
    batch = _batch("patches", tensor, grid, rows, index, present,
                   of_rows={"context_of": context_of})
    return lpcam.make_cams(batch, lpcam.Settings())


class _Photo:
    """A head that embeds every photo as it is told."""

    def __init__(self, photo: Tensor) -> None:
        self.photo = photo

    def block(self, tokens: Tensor) -> Tensor:
        """The tokens."""
        return tokens

    def class_embedding(self, tokens: Tensor) -> Tensor:
        """The photo's vector."""
        return self.photo


def surgery_cam(tensor: Tensor, photo: Tensor, grid: tuple[int, int], rows: Tensor, index: Tensor,
                present: Sequence[Tensor], **values: Any) -> list[Tensor]:
    """CLIP Surgery's maps, with the vectors of the photos (B, dim) given."""
    head: Any = _Photo(photo)
    ids = [str(number) for number in range(len(present))]
    batch = CamBatch(ids, grid, {"patches": tensor, "tokens": tensor}, present, rows, index,
                     head=head)
    return surgery.make_cams(batch, surgery.Settings(**values))


def neighbour_embeddings(head: Head, tokens: Tensor, grid: tuple[int, int], **values: Any
                         ) -> Tensor:
    """NACLIP's patches."""
    return naclip.make_patches(EmbeddingBatch([], grid, {"tokens": tokens}, head),
                               naclip.Settings(**values))


def self_attention_embeddings(head: Head, tokens: Tensor, **values: Any) -> Tensor:
    """SCLIP's patches."""
    return sclip.make_patches(EmbeddingBatch([], (0, 0), {"tokens": tokens}, head),
                              sclip.Settings(**values))


def proxy_embeddings(head: Head, tokens: Tensor, second: Tensor, **values: Any) -> Tensor:
    """ProxyCLIP's patches."""
    tensors = {"tokens": tokens, "second_patches": second}
    return proxyclip.make_patches(EmbeddingBatch([], (0, 0), tensors, head),
                                  proxyclip.Settings(**values))


def prototype_aware_cam(tensor: Tensor, cams: Tensor, classes: Tensor, rows: Tensor,
                        index: Tensor, **values: Any) -> Tensor:
    """CPAL's maps."""
    photo = PhotoMaps("photo", cams, classes, {"patches": tensor}, prototypes=rows,
                      class_index=index)
    return cpal.refine(photo, cpal.Settings(**values))


def transport_maps(cams: Tensor, first: Tensor, second: Tensor, **values: Any) -> Tensor:
    """DHR's maps, of flat ones (K, n)."""
    photo = PhotoMaps("photo", cams[:, None], torch.arange(len(cams)) + 1,
                      {"patches": first, "second_patches": second})
    return transport.refine(photo, transport.Settings(**values))[:, 0]


def refine(cams: Tensor, source: Tensor, *, affinity: str = "attention", exclusive: bool = False,
           normalise: bool = True, **values: Any) -> Tensor:
    """Maps spread along attention, or between patches that look alike."""
    classes = torch.arange(len(cams)) + 1
    of_boxes: dict[str, Any] = {"box": "exclusive" if exclusive else "inclusive",
                                "min_max": normalise, **values}
    photo = PhotoMaps("photo", cams, classes, {affinity: source})
    if affinity == "patches":
        return patches.refine(photo, patches.Settings(**of_boxes))
    return attention.refine(photo, attention.Settings(**of_boxes))


def class_clusters(pixels: Tensor, labels: Tensor, start: Tensor, index: Tensor, count: int,
                   *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clusters of each class's seeds."""
    pool = Pixels(pixels, torch.zeros_like(labels), labels, [])
    return kmeans.estimate(pool, start, index, kmeans.Settings(per_class=count), seed)


def with_background_clusters(pixels: Tensor, labels: Tensor, rows: Tensor, index: Tensor,
                             count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows with clusters in the place of the background's words."""
    pool = Pixels(pixels, torch.zeros_like(labels), labels, [])
    settings = kmeans.Settings(background="clusters", clusters=count)
    return means.with_background(pool, rows, index, settings, seed)


def class_and_context(pixels: Tensor, labels: Tensor, beside: Tensor, owner: int, text: Tensor,
                      text_index: Tensor, *, context: tuple[float, float], words: bool,
                      **values: Any) -> tuple[Tensor, Tensor]:
    """LPCAM's centres of a class and of its context."""
    pool = Pixels(pixels, torch.zeros_like(labels), labels, [])
    settings = lpcam_estimator.Settings(
        context_least=context[0], context_most=context[1],
        rivals="words" if words else "classes", **values)
    return lpcam_estimator.class_and_context(pool, beside, owner, text, text_index, settings, 0)
