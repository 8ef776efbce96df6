"""`refine`: CAMs made better with what else is known about the photo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vpltool import options
from vpltool.formats import InputFolder, OutputFolder, Workspace
from vpltool.methods import KINDS, find_method
from vpltool.methods.inputs import PhotoMaps
from vpltool.parallel.batches import feature_batches
from vpltool.settings import Settings, setting, warn_without_effect
from vpltool.stage import Stage
from vpltool.stages import _inputs, _photo_work
from vpltool.stages.cam import TENSORS

UNREFINED = tuple(name for name in _inputs.BEST_FIRST if not name.endswith("-refined"))


@dataclass(frozen=True, kw_only=True)
class RefineSettings(Settings):
    """Settings of `refine`."""

    cams: str = setting("", "CAMs to refine; default: vision if there, else text.",
                        metavar="NAME-OR-PATH", record="never")
    method: str = setting(KINDS["refiners"].default, "How maps are spread; see below.",
                          metavar="NAME", aliases=["--affinity"])
    split: str = options.split("train")
    features: Path | None = options.features()
    store: str = options.store()
    device: str = options.device()
    batch_size: int = options.batch_size(8)
    limit: int = options.limit()
    out: Path | None = options.out()
    overwrite: bool = options.overwrite()
    update: bool = options.update()


STAGE = Stage(order=42, panel="2. Maps and prototypes", reads=("cams", "features"),
              writes=("cams",), settings=RefineSettings, methods="refiners")


def run(workspace: Workspace, settings: RefineSettings) -> list[Path]:
    """Spread CAMs over the photo: what belongs to the object joins it.

    Example: vpltool refine --cams text --split train

    Next: vpltool crf, or vpltool eval

    Args:
        workspace: where inputs are found and outputs go.
        settings: which maps, which method, which photos.

    Returns:
        the folder of refined maps.

    Raises:
        VplError: an input is missing.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, find_method("refiners", settings.method).load()
    cams = _inputs.find_cams(workspace, settings.cams, split, UNREFINED)
    features = _inputs.open_features(workspace, settings.features, split)
    _inputs.check_kept(features, [name for name in TENSORS if name in method.READS])
    warn_without_effect(settings)
    photos = _inputs.photos_with(workspace, split, settings.limit, features, cams)
    header = _inputs.make_header(
        workspace, "cams", "refine", settings, model=features.header.model,
        inputs={"cams": cams, "features": features, "classes": workspace.classes_identity})
    name = f"{cams.name}-refined"
    folder = settings.out or workspace.path / "cams" / name / split
    outputs = _photo_work.open_outputs({folder: header}, photos, settings)

    def write(output: OutputFolder, key: str, made: dict[str, Any]) -> None:
        from vpltool.parallel.device import PRECISIONS

        # Here, so that on a GPU only the writing thread waits for the maps.
        output.write_tensors(key, made | {"cam": made["cam"].to(PRECISIONS[settings.store]).cpu()})

    return _photo_work.make_photos(
        f"refine {name} {split}", outputs,
        lambda todo: _start(workspace, settings, method, cams, features, todo), write, settings)


def _start(workspace: Workspace, settings: RefineSettings, method: ModuleType, cams: InputFolder,
           features: InputFolder, todo: list[str]) -> Iterator[_photo_work.Made]:
    from vpltool.parallel.device import find_device
    from vpltool.parallel.memory import explain_out_of_memory

    device = find_device(settings.device)
    wanted = [name for name in TENSORS if name in method.READS]
    by_id = {photo.id: photo for photo in workspace.photos(settings.split)}

    def refined(key: str, tensors: dict[str, Any]) -> _photo_work.Made:
        maps = cams.read_tensors(key)
        photo = by_id[key]
        return key, {"classes": maps["classes"], "cam": method.refine(PhotoMaps(
            key, maps["cam"].to(device, non_blocking=True), maps["classes"], tensors,
            _inputs.read_known_photo(workspace, photo) if "photo" in method.READS else None,
            photo.caption if "captions" in method.READS else ""), settings.of_method)}

    def results() -> Iterator[_photo_work.Made]:
        for batch in feature_batches(features, todo, wanted, settings.batch_size, device=device):
            for number, key in enumerate(batch.ids):
                with explain_out_of_memory(f"a photo of {batch.each}",
                                           _inputs.smaller_photos_hint(features.header)):
                    made = refined(key, {name: field[number].to(device, non_blocking=True)
                                         for name, field in batch.tensors.items()})
                yield made

    return results()
