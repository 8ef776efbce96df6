"""`refine`: CAMs made better with what else is known about the photo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool import options
from vpltool.engine.features import (
    BEST_FIRST,
    check_kept,
    find_cams,
    open_features,
    open_second,
    read_second,
    smaller_photos_hint,
)
from vpltool.engine.headers import check_same_model, make_header
from vpltool.engine.photo_work import Failed, Made, make_photos, open_outputs
from vpltool.engine.photos import chosen_shard, paths_of, photos_with, read_known_photo
from vpltool.engine.prototypes import (
    Prototypes,
    check_fits,
    check_rows,
    class_rows,
    read_prototypes,
    space_of,
)
from vpltool.engine.segmenters import decoder_header, find_decoder, read_segmenter, reads_of
from vpltool.errors import VplError
from vpltool.formats import InputFolder, OutputFolder, Workspace
from vpltool.formats.kinds import FEATURE_TENSORS, place
from vpltool.formats.values import BadValues
from vpltool.methods import KINDS, load_method
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.interfaces import Refiner
from vpltool.parallel.batches import feature_batches
from vpltool.parallel.device import dtype_of, find_device
from vpltool.parallel.memory import explain_out_of_memory
from vpltool.settings import setting, warn_without_effect
from vpltool.stage import Stage

UNREFINED = tuple(name for name in BEST_FIRST if not name.endswith("-refined"))


@dataclass(frozen=True, kw_only=True)
class RefineSettings(options.PerPhoto):
    """Settings of `refine`."""

    cams: str = setting("", "CAMs to refine; default: vision if it exists, else text.",
                        metavar="NAME-OR-PATH", record="never")
    method: str = setting(KINDS["refiners"].default, "Method that refines the maps.",
                          metavar="NAME", aliases=["--affinity"])
    prototypes: str = setting("vision", "Prototypes, for a method that reads them.",
                              metavar="NAME-OR-PATH", record="never", brief=False)
    decoder: str = setting("", "Decoder, for a method that reads one; default: the only one, or "
                               "the first of vision-refined, vision, text-refined and text.",
                           metavar="NAME-OR-PATH", record="never", brief=False)
    features: Path | None = options.features()
    second: Path | None = options.second()
    store: str = options.store()


STAGE = Stage(order=42, panel="2. Maps and prototypes", reads=("cams", "features", "decoder"),
              writes=("cams",), settings=RefineSettings, methods="refiners")


def run(workspace: Workspace, settings: RefineSettings) -> list[Path]:
    """Refine CAMs: spread them from their peaks over the whole object.

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
    split, method = settings.split, load_method(Refiner, settings.method)
    cams = find_cams(workspace, settings.cams, split, UNREFINED)
    features = open_features(workspace, settings.features, split)
    check_kept(features, [name for name in FEATURE_TENSORS if name in method.READS])
    beside = _open_beside(workspace, settings, method, features)
    photos = photos_with(workspace, split, settings.limit, features, cams,
                         *([beside.second] if beside.second else []),
                         shard=chosen_shard(settings.shard))
    header = make_header(
        workspace, "cams", "refine", settings, model=features.header.model,
        inputs={"cams": cams, "features": features, "classes": workspace.classes_identity,
                **({"second": beside.second} if beside.second else {}),
                **({"prototypes": beside.prototypes.path} if beside.prototypes else {}),
                **({"decoder": beside.decoder} if beside.decoder else {})})
    name = f"{cams.name}-refined"
    folder = settings.out or place(workspace.path, "cams", name, split)
    outputs = open_outputs({folder: header}, photos, settings,
                           1 + len(workspace.classes))

    def write(output: OutputFolder, key: str, made: dict[str, Any]) -> None:
        # Here, so that on a GPU only the writing thread waits for the maps.
        output.write_tensors(key, made | {"cam": made["cam"].to(dtype_of(settings.store)).cpu()})

    return make_photos(
        f"refine {name} {split}", outputs,
        lambda todo: _start(workspace, settings, method, cams, features, beside, todo), write,
        settings, reads=paths_of(workspace, split) if "photo" in method.READS else None)


@dataclass(frozen=True)
class _Beside:
    """What a method reads beside CAMs and features."""

    second: InputFolder | None
    prototypes: Prototypes | None
    decoder: Path | None


def _open_beside(workspace: Workspace, settings: RefineSettings, method: Refiner,
                 features: InputFolder) -> _Beside:
    second = open_second(workspace, settings.second, settings.split, method.READS)
    prototypes = None
    if "prototypes" in method.READS:
        prototypes = read_prototypes(
            workspace, class_rows(workspace, settings), aligned=True)
        check_fits(features, prototypes)
        check_rows(prototypes, method.READS)
    decoder = (_find_decoder(workspace, settings.decoder, features)
               if "decoder" in method.READS else None)
    name = settings.method
    warn_without_effect(settings, without={
        **({} if second else {"second": f"`{name}` reads no second encoder"}),
        **({} if prototypes else {"prototypes": f"`{name}` reads no prototypes"}),
        **({} if decoder else {"decoder": f"`{name}` reads no decoder"})})
    return _Beside(second, prototypes, decoder)


def _find_decoder(workspace: Workspace, choice: str, features: InputFolder) -> Path:
    """Path of a decoder whose layers the features hold.

    Raises:
        VplError: there is none, it is of another CLIP, or the features lack a layer of it.
    """
    path = find_decoder(workspace.path, choice)
    header = decoder_header(path)
    check_same_model(features.header.model, header.model, f"{features.path} and {path}")
    reads, layers = reads_of(header)
    check_kept(features, [name for name in FEATURE_TENSORS if name in reads])
    held = features.header.options["layers"]
    if not layers <= set(held):
        wanted = ",".join(map(str, sorted(layers)))
        raise VplError(f"{features.path} holds the layers {held}; {path} reads {wanted}",
                       f"`extract(split={features.header.options['split']!r}, keep="
                       f"{','.join(features.header.options['keep'])!r}, layers={wanted!r}, "
                       "overwrite=True)`")
    return path


def _start(workspace: Workspace, settings: RefineSettings, method: Refiner, cams: InputFolder,
           features: InputFolder, beside: _Beside, todo: list[str]) -> Iterator[Made]:
    from vpltool.core.decoder import layers_of
    from vpltool.core.grids import resample_maps

    method.check(features.header.options, settings.of_method)
    device = find_device(settings.device)
    network = read_segmenter(beside.decoder)[1].to(device) if beside.decoder else None
    reads = {*method.READS, *(network.reads if network else ())}
    wanted = [name for name in FEATURE_TENSORS if name in reads]
    stored = features.header.options["layers"]
    by_id = {photo.id: photo for photo in workspace.photos(settings.split)}

    found = beside.prototypes
    space = space_of(found) if found else None
    space = space.to(device) if space else None
    of_prototypes: dict[str, Any] = {} if found is None else {
        "prototypes": found.rows.to(device), "class_index": found.class_index.to(device),
        "of_rows": {name: tensor.to(device) for name, tensor in found.of_rows.items()},
        "row_photos": found.photos}

    def refined(key: str, grid: tuple[int, int], tensors: dict[str, Any]) -> Made:
        try:
            maps = cams.read_tensors(key)
        except BadValues as error:
            return key, Failed(error.message)
        # Those of groups are on another grid.
        maps["cam"] = resample_maps(maps["cam"], grid)
        photo = by_id[key]
        if space is not None and "patches" in tensors:
            tensors["patches"] = space(tensors["patches"].float())
        if network is not None and network.layers:
            tensors["layers"] = layers_of(tensors["layers"], stored, network.layers)
        tensors |= {name: tensor.to(device) for name, tensor in read_second(
            beside.second, key, method.READS, grid).items()}
        return key, {"classes": maps["classes"], "cam": method.refine(PhotoMaps(
            key, maps["cam"].to(device, non_blocking=True), maps["classes"], tensors,
            read_known_photo(workspace, photo) if "photo" in method.READS else None,
            photo.captions if "captions" in method.READS else (), **of_prototypes, decoder=network),
            settings.of_method)}

    def results() -> Iterator[Made]:
        for batch in feature_batches(features, todo, wanted, settings.batch_size, device=device):
            yield from ((key, Failed(why)) for key, why in batch.failed.items())
            for number, key in enumerate(batch.ids):
                with explain_out_of_memory(f"a photo of {batch.each}",
                                           smaller_photos_hint(features.header)):
                    made = refined(key, batch.grid, {
                        name: field[number].to(device, non_blocking=True)
                        for name, field in batch.tensors.items()})
                yield made

    return results()
