"""What rows measure: scores of CAMs, masks and predictions, and the modality gap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpltool.recipes.tables.chains import Chains


def seed_score(chains: Chains, cams: str, split: str) -> float:
    """Percent mIoU of CAMs at the threshold of the protocol."""
    cut: dict[str, Any] = {}
    if chains.protocol.cut:
        chosen = chains.cams("text", chains.protocol.cut)
        # No alpha: the best threshold is looked for.
        _score(chains, f"cams/{chosen}", chains.protocol.cut, f"{chosen}-cut", alpha=0.0)
        cut = {"threshold_from": _path(chains, f"{chosen}-cut"), "alpha": 0.0}
    return _made_score(chains, f"cams/{cams}", split, f"{cams}-{split}", **cut)


def mask_score(chains: Chains, masks: str, split: str) -> float:
    """Percent mIoU of masks."""
    return _made_score(chains, f"masks/{masks}-full", split, f"{masks}-masks-{split}")


def prediction_score(chains: Chains, name: str, *, crf: bool) -> float:
    """Percent mIoU of predictions, with the CRF at test or without."""
    name = chains.at_test(name) if crf else name
    return _score(chains, f"predictions/{name}", chains.split, f"{name}-{chains.split}")


def gap(chains: Chains, prototypes: str) -> float:
    """Mean 1 - cosine of prototypes to the regions that the text's CAMs mark, on --learn."""
    regions = chains.cams("text", chains.learn)
    report = chains.call("gap", prototypes=(prototypes,), cams=regions, split=chains.learn,
                         out=_path(chains, f"gap-{prototypes}"), **chains.features(chains.learn))
    return float(report["prototypes"][prototypes]["cosine"])


def made_scored(chains: Chains) -> str:
    """Where what is made for --learn is scored: on `train` if that is a part of it."""
    inside, whole = (sum("train" in photo.splits for photo in chains.source.photos(split))
                     for split in (chains.learn, ""))
    return "train" if 0 < inside == whole else chains.learn


def _made_score(chains: Chains, what: str, split: str, name: str, **values: Any) -> float:
    """Percent mIoU of maps or masks of a split; of train_aug's, on `train`."""
    scored = made_scored(chains) if split == chains.learn else split
    if scored != split:
        return _score(chains, str(chains.path / what / split), scored, name, **values)
    return _score(chains, what, split, name, **values)


def _score(chains: Chains, what: str, split: str, name: str, **values: Any) -> float:
    report = chains.call("eval", what=what, split=split, **values, out=_path(chains, name))
    return 100 * float(report["miou"])


def _path(chains: Chains, name: str) -> Path:
    return chains.path / "tables/scores" / f"{name}.json"
