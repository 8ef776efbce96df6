"""A linear classifier of layers' tokens, patch by patch, and a step of its training."""

from __future__ import annotations

import math


def token(values: list[float]) -> list[float]:
    """A token less its mean, over its standard deviation (ε = 1e-5)."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in values]


def scores(layers: list[list[list[float]]], weight: list[list[float]], bias: list[float]
           ) -> list[list[float]]:
    """Scores [patch][class] of a photo's layers [layer][patch][channel]."""
    found = []
    for place in range(len(layers[0])):
        inputs = [value for layer in layers for value in token(layer[place])]
        found.append([sum(w * x for w, x in zip(row, inputs, strict=True)) + shift
                      for row, shift in zip(weight, bias, strict=True)])
    return found


def walked(last: list[list[float]], found: list[list[float]], tau: float) -> list[list[float]]:
    """Scores averaged by softmax(cosine of centred tokens / tau), the last layer's as they are."""
    tokens = [token(values) for values in last]
    mean = [sum(channel) / len(tokens) for channel in zip(*tokens, strict=True)]
    centred = [[value - shift for value, shift in zip(values, mean, strict=True)]
               for values in tokens]

    def cosine(one: list[float], other: list[float]) -> float:
        sizes = [max(math.sqrt(sum(value**2 for value in values)), 1e-12)
                 for values in (one, other)]
        return sum(a * b for a, b in zip(one, other, strict=True)) / (sizes[0] * sizes[1])

    result = []
    for place in centred:
        parts = [math.exp(cosine(place, other) / tau) for other in centred]
        result.append([sum(part * row[index] for part, row in zip(parts, found, strict=True))
                       / sum(parts) for index in range(len(found[0]))])
    return result


def gradients(layers: list[list[list[float]]], labels: list[list[int]], classes: int
              ) -> tuple[list[list[float]], list[float]]:
    """Gradients of an untrained classifier's weights and biases, all 0, in a photo of one column.

    Enlarging scores bilinearly is a sum with fixed weights, so a patch's gradient is the sum over
    labels of its weight there times (softmax − one-hot); a softmax of zeros is 1/classes.

    Args:
        layers: [layer][patch][channel], the patches of a column, top to bottom.
        labels: [4·patches][4], 255 is left out.
        classes: how many there are.
    """
    patches = len(layers[0])
    counted = sum(label != 255 for row in labels for label in row)
    weight = [[0.0] * sum(len(layer[0]) for layer in layers) for _ in range(classes)]
    bias = [0.0] * classes
    for y, row in enumerate(labels):
        centre = min(max((y + 0.5) / 4 - 0.5, 0.0), patches - 1.0)
        upper = int(centre)
        shares = {upper: 1 - (centre - upper)}
        if upper + 1 < patches:
            shares[upper + 1] = centre - upper
        for label in row:
            if label == 255:
                continue
            for place, share in shares.items():
                inputs = [value for layer in layers for value in token(layer[place])]
                for index in range(classes):
                    slope = share * (1 / classes - (index == label)) / counted
                    bias[index] += slope
                    for channel, value in enumerate(inputs):
                        weight[index][channel] += slope * value
    return weight, bias
