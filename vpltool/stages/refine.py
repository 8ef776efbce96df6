"""`refine`: CAMs refined with the photo and its features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.core.grids import layers_of, resample_maps
from vpltool.engine import opening, photo_work, segmenters
from vpltool.engine.features import BEST_FIRST, read_second, smaller_photos_hint
from vpltool.errors import is_out_of_memory
from vpltool.formats import JsonObject, OutputFolder, Workspace, kinds
from vpltool.methods import KINDS, Refiner, inputs, load_method
from vpltool.parallel import batches
from vpltool.parallel.device import dtype_of
from vpltool.settings import Stage, setting

UNREFINED = tuple(name for name in BEST_FIRST if not name.endswith("-refined"))


@dataclass(frozen=True, kw_only=True)
class RefineSettings(options.PerPhoto):
    """Settings of `refine`."""

    cams: str = setting("", "CAMs to refine; default: vision if it exists, else text.",
                        metavar="NAME-OR-PATH", record="never", reads="cams")
    method: str = setting(KINDS["refiners"].default, "Method that refines the maps.",
                          metavar="NAME", aliases=["--affinity"])
    prototypes: str = setting("vision", "Prototypes, for a method that reads them.",
                              metavar="NAME-OR-PATH", record="never", brief=False,
                              reads="prototypes")
    decoder: str = setting("", "Decoder, for a method that reads one; default: the only one, or "
                               "the first of vision-refined, vision, text-refined and text.",
                           metavar="NAME-OR-PATH", record="never", brief=False, reads="decoder")
    features: Path | None = options.features()
    second: Path | None = options.second()
    store: str = options.store()


STAGE = Stage(order=42, panel="2. Maps and prototypes", reads=("cams", "features", "decoder"),
              writes=("cams",), settings=RefineSettings, methods="refiners")


def run(workspace: Workspace, settings: RefineSettings) -> list[Path]:
    """Refine CAMs: spread them from their peaks over the whole object.

    Example: vpltool refine --cams text --split train

    Next: vpltool crf, or vpltool eval

    Returns:
        the folder of refined maps.

    Raises:
        VplError: an input is missing.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(Refiner, settings.method)
    opened = opening.open_inputs(workspace, settings, method.READS, ("cams", "features"),
                              preferred=UNREFINED)
    name = f"{opened.folders['cams'].name}-refined"

    def write(output: OutputFolder, key: str, made: JsonObject) -> None:
        # Copied here, so that on a GPU only the writing thread waits.
        output.write_tensors(key, made | {"cam": made["cam"].to(dtype_of(settings.store)).cpu()})

    out = settings.out or kinds.result_path(workspace.path, "cams", name, split)
    return opened.make(f"refine {name} {split}", {out: opened.header("cams", "refine")},
                       lambda todo: _start(opened, method, settings, todo), write=write)


def _start(opened: opening.Opened, method: Refiner, settings: RefineSettings, todo: list[str]
           ) -> Iterator[photo_work.Made]:
    """Load the method's inputs; return an iterator over each photo's maps."""
    features, cams = opened.features, opened.folders["cams"]
    method.check(features.header.options, settings.of_method)
    loaded = opened.load()
    device, space, rows = loaded.device, loaded.space, loaded.prototypes
    network = (segmenters.open_segmenter(opened.decoder).network().to(device) if opened.decoder
               else None)
    reads = {*method.READS, *(network.reads if network else ())}
    wanted = [name for name in kinds.FEATURE_TENSORS if name in reads]
    stored = features.header.options["layers"]
    of_prototypes: JsonObject = {} if rows is None else {
        "prototypes": rows.rows, "class_index": rows.class_index, "of_rows": rows.of_rows,
        "row_photos": rows.photos}

    def refined(key: str, grid: tuple[int, int], tensors: JsonObject) -> photo_work.Made:
        try:
            maps = cams.read_tensors(key)
        except kinds.BadValues as error:
            return key, photo_work.Failed(error.message)
        # Maps of groups are on another grid.
        maps["cam"] = resample_maps(maps["cam"], grid)
        if space is not None and "patches" in tensors:
            tensors["patches"] = space(tensors["patches"].float())
        if network is not None and network.layers:
            tensors["layers"] = layers_of(tensors["layers"], stored, network.layers)
        tensors |= {name: tensor.to(device) for name, tensor in read_second(
            opened.second, key, method.READS, grid).items()}
        made = method.refine(inputs.PhotoMaps(
            key, maps["cam"].to(device, non_blocking=True), maps["classes"], tensors,
            next(iter(loaded.rgb([key])), None), next(iter(loaded.captions([key])), ()),
            **of_prototypes, decoder=network), settings.of_method)
        return key, {"classes": maps["classes"], "cam": made}

    def results() -> Iterator[photo_work.Made]:
        for batch in batches.feature_batches(features, todo, wanted, settings.batch_size,
                                             device=device):
            yield from ((key, photo_work.Failed(why)) for key, why in batch.failed.items())
            for number, key in enumerate(batch.ids):
                try:
                    yield refined(key, batch.grid, {
                        name: field[number].to(device, non_blocking=True)
                        for name, field in batch.tensors.items()})
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    yield key, photo_work.too_large_photo(
                        batch.each, smaller_photos_hint(features.header))

    return results()
