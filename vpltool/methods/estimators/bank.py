"""A bank: every region or pixel is a row of its own, with its photo.

With `--pixels regions` it has a row for each class of each photo, and one for the rest of the
photo; `refine --method retrieval` reads them (after CorrCLIPv2). With seeds it has a row for each
patch, up to `--max-pixels`; `cam --method knn` reads them (after the hummingbird evaluation of
Balažević et al., NeurIPS 2023). Classes without pixels get the rows of the text. If there are too
many patches, the same share of each photo is drawn; the hummingbird evaluation prefers rare
classes.

Example: `vpltool seed-prototypes --method bank --pixels regions --out bank.safetensors`
"""

from __future__ import annotations

from vpltool.core.phase_one import Pixels
from vpltool.lazy import Tensor, torch
from vpltool.settings import Settings

READS = ("patches",)


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the pixels as they are; classes without pixels keep their text. See `means.estimate`.

    Each row has a `photo_of` (rows',), -1 for rows of the text.
    """
    missing = ~torch.isin(text_index, pool.labels)
    rows = torch.cat([pool.embeddings.float(), text[missing]])
    index = torch.cat([pool.labels, text_index[missing]])
    photo_of = torch.cat([pool.photo_of, torch.full_like(text_index[missing], -1)])
    return rows, index, {"photo_of": photo_of}
