"""The discriminant, trained on together with the last blocks of its encoder, on pseudo masks.

It begins with the map of `discriminant`, computed first or taken from `--start`, and so at its
score. Crops are scaled, mirrored and recoloured; the result is the average of the weights over the
steps (Mean teacher, Tarvainen and Valpola, NeurIPS 2017). Labels that the average doubts are
ignored, since networks fit the errors of labels last (ELR, Liu et al., NeurIPS 2020), and the tags
are a second target. The file holds the whole encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.methods.segmenters import discriminant
from vpltool.settings import setting

READS = ("layers",)
TRAINS_ENCODER = True


@dataclass(frozen=True, kw_only=True)
class Settings(discriminant.Settings):
    """Settings of the finetuning."""

    blocks: int = setting(4, "Last blocks of the encoder that are trained; 0: all of it.", low=0,
                          source="vpltool")
    rank: int = setting(0, "Train low-rank updates of the blocks' matrices of this rank, as LoRA "
                           "does, and not the matrices; 0: the matrices.", low=0,
                        source="LoRA, Hu et al., ICLR 2022: 4 or 8")
    average: float = setting(0.999, "Decay of the average of the weights, which is what is kept.",
                             low=0, high=1, source="Mean teacher, Tarvainen and Valpola 2017")
    doubt: float = setting(0.3, "Ignore labels to which the averaged network gives a smaller "
                                "probability; 0: none.", low=0, high=1, source="vpltool")
    lambda_tags: float = setting(0.1, "Weight of the tags: the likeliest pixels of a class that is "
                                      "not tagged should not be of it; 0: off.", low=0,
                                 source="vpltool")


build, rebuild = discriminant.build, discriminant.rebuild
"""The network is the discriminant's."""
