"""`seed-prototypes`: from the pixels that CAMs are sure of to prototypes, without a solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console, options
from vpltool.formats import Workspace, write_tensors
from vpltool.methods import KINDS, find_method
from vpltool.settings import NoEffect, Settings, setting, warn_without_effect
from vpltool.stage import Stage
from vpltool.stages import _aligned, _inputs, _phase_one

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.phase_one import Pixels

_REGIONS = NoEffect({"pixels": ("regions",)}, "regions need no threshold")


@dataclass(frozen=True, kw_only=True)
class SeedPrototypesSettings(Settings):
    """Settings of `seed-prototypes`."""

    cams: str = _phase_one.cams()
    phi: float = _phase_one.phi(_REGIONS)
    phi_background: float = _phase_one.phi_background(_REGIONS)
    pixels: str = setting(
        "seeds", "seeds of the CAMs; or regions: a CAM-weighted mean a class and photo.",
        choices=("seeds", "regions"))
    method: str = setting(KINDS["estimators"].default,
                          "How prototypes are made of them; see below.", metavar="NAME")
    split: str = options.split("train")
    max_pixels: int = _phase_one.max_pixels()
    seed: int = options.seed()
    text: str = _phase_one.text(brief=False)
    features: Path | None = options.features()
    device: str = options.device()
    limit: int = options.limit("changed")
    out: Path | None = options.out()
    overwrite: bool = options.overwrite()
    update: bool = options.update()


STAGE = Stage(order=44, panel="2. Maps and prototypes", reads=("features", "prototypes", "cams"),
              writes=("prototypes",), settings=SeedPrototypesSettings, methods="estimators")


def run(workspace: Workspace, settings: SeedPrototypesSettings) -> Path:
    """Make vision prototypes of the pixels that CAMs are sure of; nothing is learned.

    They serve as they are, or as the start of learn-prototypes. Classes without seeds keep their
    text prototype.

    Example: vpltool seed-prototypes --cams text-salient --phi 0.9 --background clusters

    Next: vpltool cam --prototypes seeds, or vpltool learn-prototypes --start seeds --pixels seeds

    Args:
        workspace: where inputs are found and outputs go.
        settings: which seeds, which method.

    Returns:
        the file of prototypes.

    Raises:
        VplError: an input is missing or does not fit the others, or there are no seeds.
    """
    method = find_method("estimators", settings.method).load()
    warn_without_effect(settings)
    features = _inputs.open_features(workspace, settings.features, settings.split)
    text = _phase_one.read_text(workspace, settings.text, features)
    maps = _phase_one.find_seeding_cams(workspace, settings.cams, settings.split)
    header = _inputs.make_header(
        workspace, "prototypes", "seed-prototypes", settings, model=features.header.model,
        inputs={"features": features, "text": text.path, "cams": maps,
                "tags": workspace.tags_identity(settings.split)},
        options={"text": text.path.stem, "cams": maps.name})
    target = settings.out or workspace.path / "prototypes/seeds.safetensors"
    if not _inputs.check_file(target, header, overwrite=settings.overwrite,
                              update=settings.update):
        pool = _phase_one.gather(workspace, features, maps, settings, _aligned.space_of(text))
        device = pool.embeddings.device
        zs, zs_index = text.rows.to(device), text.class_index.to(device)
        _warn_of_missing_seeds(workspace, pool, zs_index)
        with _phase_one.memory_for(len(pool.embeddings)):
            rows, index, *more = method.estimate(pool, zs, zs_index, settings.of_method,
                                                 settings.seed)
            of_rows: dict[str, Tensor] = more[0] if more else {}
            facts = _phase_one.facts_of(workspace, pool, (zs, zs_index), rows, index)
        if "photo_of" in of_rows:
            facts["photos"] = list(pool.ids)
        of_space, facts_of_space = _aligned.carried(text)
        write_tensors(target, replace(header, facts=facts | facts_of_space),
                      {"prototypes": rows.cpu(), "class_index": index.cpu(), **of_space}
                      | {name: tensor.cpu() for name, tensor in of_rows.items()})
    return target


def _warn_of_missing_seeds(workspace: Workspace, pool: Pixels, text_index: Tensor) -> None:
    seeded = set(pool.labels.unique().tolist())
    without = [workspace.class_name(item) for item in text_index.unique().tolist()
               if item and item not in seeded]
    if without:
        console.warn(f"no seeds for {', '.join(without)}: the text prototype stays")
