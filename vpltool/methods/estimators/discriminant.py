"""One prototype per class by Fisher's discriminant, which teaches itself within the tags.

It is fitted to the seeds, labels every pixel with one of its photo's tags or the background, and is
fitted again to the labels that it is sure of. Patches are measured by their own covariance, so the
same settings serve encoders whose cosines lie elsewhere. `cam --method discriminant` reads the
result; each row is also a prototype like any other, without its scale and bias.

With `instances`, seeds need not know which tag they belong to, since photos without a tag show what
its class is not. For each tag, a discriminant separates the seeds of its photos from all photos
without it, and then chooses the patches of its photos again, three times. This is multiple-instance
learning (Dietterich et al., 1997; mi-SVM, Andrews et al., NIPS 2002). It helps if photos have
several tags, and harms if only a part of an object distinguishes photos. So the plain seeds teach a
second discriminant. Each ranks the photos by the share that it gives to a class; the one with the
better mean average precision, which needs only tags, is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vpltool import settings
from vpltool.core.classes import BACKGROUND, allowed_rows
from vpltool.core.discriminant import Moments, discriminant, shrunk
from vpltool.core.distributed import ALONE, Group
from vpltool.core.phase_one import Pixels
from vpltool.lazy import F, Tensor, torch
from vpltool.settings import setting

READS = ("patches",)

_CHUNK = 65536
"""Number of pixels that are scored at a time: bounds the memory."""

_CHOICES = 3
"""How often pixels are chosen anew; once gave the same on train-a of animals and of photos20."""

UNLABELLED = True
"""Whether pixels that are no seeds are read too."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the discriminant and its rounds."""

    rounds: int = setting(6, "Rounds of labelling all pixels and fitting again.", low=0,
                          source="vpltool")
    confidence: float = setting(0.8, "Probability at which a label counts in the next round.",
                                low=0, high=1, source="vpltool")
    shrinkage: float = setting(0.1, "Shrinkage of the covariance towards a multiple of the "
                                    "identity.", low=1e-6, high=1,
                               source="as `train-decoder --method discriminant`")
    instances: float = setting(
        0.0, "Share of a photo's pixels that get each of its tags before the first round: those "
             "that photos without the tag lack. Kept if the result predicts the tags better than "
             "that of the seeds. 0: the seeds.", low=0, high=1,
        record="changed", source="vpltool, 0.08 chosen on train-a of animals and of photos20")
    prior: float = setting(1.0, "Exponent of the class frequency: 1 is Bayes' rule, 0 treats all "
                                "classes as equally likely.", low=0, source="Bayes' rule")


def divides(settings: Settings) -> bool:
    """Return whether several processes can share the work: all of it is sums over pixels."""
    return True


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int,
             group: Group | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Fit the discriminant, and refit it to its own labels; see `means.estimate`.

    The rows are (classes + 1, dim), the background last; each has a `scale` and a `bias`: a patch x
    scores scale · (x · row) + bias.
    """
    classes = int(text_index.max()) + 1
    weight, bias = tagged_discriminant(pool, classes, settings, group or ALONE)
    order = torch.arange(1, classes + 1, device=weight.device) % classes
    weight, bias = weight[order], bias[order]
    scale = weight.norm(dim=-1)
    rows = weight / scale.clamp_min(1e-12)[:, None]
    for number in (scale == 0).nonzero()[:, 0].tolist():
        own = text[text_index == order[number]]
        if len(own):
            # A class without seeds keeps its text, as in the other methods.
            rows[number] = own[0]
    return rows, order, {"scale": scale, "bias": bias}


def tagged_discriminant(pixels: Pixels, classes: int, settings: Settings, group: Group
                        ) -> tuple[Tensor, Tensor]:
    """Return weight (K, dim) and bias (K,), float32, of a discriminant trained on its own labels.

    It is fitted to the seeds first. In each round it labels every pixel with one of its photo's
    tags or the background, and is refitted to its confident labels: self-training (Yarowsky, ACL
    1995), which for a discriminant is hard EM (Celeux and Govaert, 1992). The tags choose between
    two starts, see the module. Class 0 is the background; a class without seeds keeps a weight of 0
    and is never chosen.
    """
    found = _taught(pixels, pixels.labels, classes, settings, group)
    if not settings.instances:
        return found
    labels = choose_instances(pixels, classes, settings, group)
    # Of equals, `max` keeps the first.
    return max(found, _taught(pixels, labels, classes, settings, group),
               key=lambda other: _tag_precision_of(pixels, other[0], other[1], group))


def _taught(pixels: Pixels, labels: Tensor, classes: int, settings: Settings, group: Group
            ) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a discriminant after all rounds, which begin with labels (N,)."""
    weight, bias = _fit(pixels.embeddings, labels, classes, settings, group)
    for _ in range(settings.rounds):
        labels = _labels_within_tags(pixels, weight, bias, settings.confidence)
        weight, bias = _fit(pixels.embeddings, labels, classes, settings, group)
    return weight, bias


def _scores(pixels: Pixels, weight: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the scores (n, K) of pixels part by part, and the photo of each (n,)."""
    for part, photos in zip(pixels.embeddings.split(_CHUNK), pixels.photo_of.split(_CHUNK),
                            strict=True):
        yield part.float() @ weight.T + bias, photos


def _labels_within_tags(pixels: Pixels, weight: Tensor, bias: Tensor, confidence: float) -> Tensor:
    """Label the pixels (N,) with their photos' tags or the background; -1 if not confident."""
    allowed = allowed_rows(torch.arange(len(weight), device=weight.device), pixels.tags)
    found = [pixels.labels[:0]]
    for scores, photos in _scores(pixels, weight, bias):
        likely, label = scores.masked_fill(~allowed[photos], float("-inf")).softmax(dim=-1).max(
            dim=-1)
        found.append(label.where(likely >= confidence, -1))
    return torch.cat(found)


def _tag_precision_of(pixels: Pixels, weight: Tensor, bias: Tensor, group: Group) -> float:
    """Return `tag_precision` of a discriminant, whose shares are computed without tags."""
    shares = weight.new_zeros(len(pixels.tags), len(weight))
    for scores, photos in _scores(pixels, weight, bias):
        shares.index_add_(0, photos, scores.softmax(dim=-1))
    shares /= pixels.photo_of.bincount(minlength=len(shares)).clamp(min=1)[:, None]
    tagged = allowed_rows(torch.arange(1, len(weight), device=weight.device), pixels.tags)
    return tag_precision(shares[:, 1:], tagged, group)


def tag_precision(shares: Tensor, tagged: Tensor, group: Group) -> float:
    """Return the mean average precision of shares of the classes at ranking photos by their tags.

    Predicted shares and the photos' tags are (photos, classes). The mean, in [0, 1], is over the
    tags that some photos have and some lack; it is 1 without any.
    """
    parts = group.collect((shares.cpu(), tagged.cpu()))
    shares, tagged = (torch.cat([part[which] for part in parts]) for which in (0, 1))
    some = tagged.any(dim=0) & ~tagged.all(dim=0)
    order = shares[:, some].argsort(dim=0, descending=True, stable=True)
    hits = tagged[:, some].gather(0, order).double()
    ranks = torch.arange(1, len(hits) + 1, dtype=torch.float64)[:, None]
    precision = (hits.cumsum(dim=0) / ranks * hits).sum(dim=0) / hits.sum(dim=0)
    return float(precision.mean()) if len(precision) else 1.0


def choose_instances(pixels: Pixels, classes: int, settings: Settings, group: Group) -> Tensor:
    """Label the pixels (N,) that distinguish photos with a tag from those without it.

    For class c, a discriminant with one covariance Σ of all pixels separates the mean μ of the
    pixels that are chosen in its photos from the mean ν of all photos without it: it scores a pixel
    x by (μ − ν)·Σ⁻¹(x − (μ + ν) / 2). Every photo counts alike. The seeds are the first choice. The
    background's seeds are never chosen, and keep the label 0; all other pixels get -1.
    """
    # The indices of each photo's pixels.
    photos = pixels.photo_of.argsort(stable=True).split(
        pixels.photo_of.bincount(minlength=len(pixels.tags)).tolist())
    means = torch.stack([pixels.embeddings[own].float().mean(dim=0) if len(own) else
                         pixels.embeddings.new_zeros(pixels.embeddings.shape[1]).float()
                         for own in photos])
    tagged = torch.zeros(len(photos), classes, dtype=torch.bool, device=means.device)
    for number, (own, tags) in enumerate(zip(photos, pixels.tags, strict=True)):
        tagged[number, tags] = True
        # Photos without pixels belong to no mean.
        tagged[number] |= not len(own)
    inverse = _inverse_covariance(pixels, settings.shrinkage, group)
    without = _mean_over(~tagged, means, group)
    chosen = [dict.fromkeys(tags.tolist(), own[pixels.labels[own] > BACKGROUND])
              for own, tags in zip(photos, pixels.tags, strict=True)]
    for step in range(_CHOICES + 1):
        sums, counts = torch.zeros_like(without), without.new_zeros(classes)
        for of_tags in chosen:
            for tag, own in of_tags.items():
                if len(own):
                    sums[tag] += pixels.embeddings[own].float().mean(dim=0)
                    counts[tag] += 1
        mean = group.total(sums) / group.total(counts).clamp(min=1)[:, None]
        weight = (mean - without) @ inverse
        bias = -(weight * (mean + without)).sum(dim=1) / 2
        chosen = [_best(pixels, own, tags, weight, bias, settings.instances,
                        apart=step == _CHOICES)
                  for own, tags in zip(photos, pixels.tags, strict=True)]
    labels = pixels.labels.where(pixels.labels == BACKGROUND, -1)
    for of_tags in chosen:
        for tag, own in of_tags.items():
            labels[own] = tag
    return labels


def _best(pixels: Pixels, own: Tensor, tags: Tensor, weight: Tensor, bias: Tensor, share: float,
          *, apart: bool) -> dict[int, Tensor]:
    """Return the indices of a photo's highest-scoring share of pixels for each tag, at least one.

    With `apart`, the best score of another tag is subtracted if it is above 0.
    """
    own, count = own[pixels.labels[own] != BACKGROUND], max(1, int(share * len(own)))
    scores = pixels.embeddings[own].float() @ weight[tags].T + bias[tags]
    found = {}
    for number, tag in enumerate(tags.tolist()):
        score = scores[:, number]
        if apart and len(tags) > 1:
            others = [other for other in range(len(tags)) if other != number]
            score = score - scores[:, others].amax(dim=1).relu()
        found[tag] = own[score.topk(min(count, len(own))).indices]
    return found


def _mean_over(chosen: Tensor, means: Tensor, group: Group) -> Tensor:
    """Return the mean (K, dim) of the chosen (photos, K) means; of all if none is chosen."""
    count = group.total(chosen.sum(dim=0).float())
    total = group.total(chosen.T.float() @ means)
    everything = group.total(means.sum(dim=0)) / group.total(
        means.new_tensor(float(len(means)))).clamp(min=1)
    return torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], everything)


def _inverse_covariance(pixels: Pixels, shrinkage: float, group: Group) -> Tensor:
    """Return the inverse (dim, dim) of the shrunk covariance of all pixels."""
    moments = _moments(pixels.embeddings, torch.zeros_like(pixels.labels), 1, group)
    count = moments.counts.clamp(min=1)
    mean = moments.sums / count[:, None]
    covariance = moments.products / count - mean.T @ mean
    return torch.linalg.inv(shrunk(covariance, shrinkage)).float()


def _fit(tokens: Tensor, labels: Tensor, classes: int, settings: Settings, group: Group
         ) -> tuple[Tensor, Tensor]:
    """Fit the discriminant to labels (N,); -1 is none."""
    moments = _moments(tokens, labels, classes, group)
    return discriminant(moments, settings.shrinkage, settings.prior)


def _moments(tokens: Tensor, labels: Tensor, classes: int, group: Group) -> Moments:
    """Sum up the pixels of all processes that have a label."""
    moments = Moments.zeros(classes, tokens.shape[1], tokens.device)
    for part, own in zip(tokens.split(_CHUNK), labels.split(_CHUNK), strict=True):
        known = own >= BACKGROUND
        moments.add(part[known].float(), F.one_hot(own[known], classes).float())
    return Moments(*map(group.total, (moments.counts, moments.sums, moments.products)))
