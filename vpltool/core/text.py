"""Text prototypes: one vector per class and per background word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def text_prototypes(
    words: Sequence[str], templates: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Return the normalised mean of each word's prompts (CLIP-ES; CLIP's zero-shot classifier).

    Args:
        words: words that go into the templates.
        templates: prompts with one `{}` each.
        encode: function from prompts to L2-normed vectors (len(prompts), dim).

    Returns:
        L2-normed vectors (len(words), dim) float32.
    """
    rows = [encode([template.format(word) for template in templates]).mean(dim=0)
            for word in words]
    return F.normalize(torch.stack(rows).float().cpu(), dim=-1)
