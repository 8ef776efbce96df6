"""`cam`: from features and prototypes to class activation maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.engine.features import (
    check_kept,
    open_features,
    open_second,
    read_batch,
    read_head,
    smaller_photos_hint,
)
from vpltool.engine.headers import make_header
from vpltool.engine.photo_work import Made, make_photos, open_outputs, run_batches
from vpltool.engine.photos import chosen_shard, paths_of, photos_with, read_known_photo, tag_tensors
from vpltool.engine.prototypes import (
    Prototypes,
    check_fits,
    check_rows,
    class_rows,
    head_in_space,
    read_prototypes,
    space_of,
)
from vpltool.formats import InputFolder, Workspace
from vpltool.formats.kinds import FEATURE_TENSORS, place
from vpltool.methods import KINDS, load_method
from vpltool.methods.inputs import CamBatch
from vpltool.methods.interfaces import CamMethod
from vpltool.parallel.batches import FeatureBatch, feature_batches, to_device
from vpltool.parallel.device import dtype_of, find_device, find_precision
from vpltool.settings import setting, warn_without_effect
from vpltool.stage import Stage


@dataclass(frozen=True, kw_only=True)
class CamSettings(options.PerPhoto):
    """Settings of `cam`."""

    prototypes: str = setting(
        "text", "text, vision, or a file of prototypes; the default without words is tags.",
        metavar="NAME-OR-PATH")
    method: str = setting(KINDS["cams"].default, "Method that makes the maps.", metavar="NAME")
    name: str = setting("", "Name of the result; default: the prototypes, plus the method unless "
                            "it is gradcam.", record="never", inside=True)
    features: Path | None = options.features()
    second: Path | None = options.second()
    store: str = options.store()
    precision: str = options.precision()


STAGE = Stage(order=40, panel="2. Maps and prototypes", reads=("features", "head", "prototypes"),
              writes=("cams",), settings=CamSettings, methods="cams")


def run(workspace: Workspace, settings: CamSettings) -> list[Path]:
    """Make a class activation map for each class that a photo is tagged with.

    At most the encoder's last block is run; the encoder is not run again. Text and vision
    prototypes are treated alike.

    Example: vpltool cam --prototypes vision --split train

    Next: vpltool refine, or vpltool learn-prototypes, or vpltool eval

    Args:
        workspace: where inputs are found and outputs go.
        settings: which prototypes, which method, which photos.

    Returns:
        the folder of maps.

    Raises:
        VplError: an input is missing or of another model.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(CamMethod, settings.method)
    features = open_features(workspace, settings.features, split)
    prototypes = read_prototypes(
        workspace, class_rows(workspace, settings), aligned=True)
    check_rows(prototypes, method.READS)
    no_network = "head" not in method.READS
    check_fits(features, prototypes, head=not no_network)
    check_kept(features, [name for name in FEATURE_TENSORS if name in method.READS])
    second = open_second(workspace, settings.second, split, method.READS)
    warn_without_effect(settings, without={
        **({"precision": "no network is run"} if no_network else {}),
        **({} if second else {"second": f"`{settings.method}` reads no second encoder"})})
    photos = photos_with(workspace, split, settings.limit, features,
                         *([second] if second else []),
                         shard=chosen_shard(settings.shard))
    header = make_header(
        workspace, "cams", "cam", settings, model=features.header.model,
        inputs={"features": features, "prototypes": prototypes.path,
                "classes": workspace.classes_identity, **({"second": second} if second else {})},
        options={"prototypes": prototypes.path.stem}, skip={"precision"} if no_network else ())
    stem = prototypes.path.stem
    name = settings.name or (stem if settings.method == "gradcam" else f"{stem}-{settings.method}")
    folder = settings.out or place(workspace.path, "cams", name, split)
    outputs = open_outputs({folder: header}, photos, settings,
                           1 + len(workspace.classes))
    return make_photos(
        f"cam {name} {split}", outputs,
        lambda todo: _start(workspace, settings, method, features, second, prototypes, todo),
        lambda output, key, made: output.write_tensors(key, made), settings,
        reads=paths_of(workspace, split) if "photo" in method.READS else None)


def _start(workspace: Workspace, settings: CamSettings, method: CamMethod, features: InputFolder,
           second: InputFolder | None, prototypes: Prototypes, todo: list[str]
           ) -> Iterator[Made]:
    """Load what the method reads; the result yields each photo's maps."""
    device = find_device(settings.device)
    reads_head = "head" in method.READS
    dtype = find_precision(settings.precision if reads_head else "fp32", device, console.warn)
    space = space_of(prototypes)
    head = head_in_space(read_head(features), space) if reads_head else None
    head = head.to(device, dtype) if head else None
    space = space.to(device, dtype) if space else None
    rows, index = prototypes.rows.to(device), prototypes.class_index.to(device)
    of_rows = {name: tensor.to(device) for name, tensor in prototypes.of_rows.items()}
    by_id = {photo.id: photo for photo in workspace.photos(settings.split)}
    tags = tag_tensors(workspace, (by_id[key] for key in todo))
    wanted = [name for name in FEATURE_TENSORS if name in method.READS]
    reads_photo, reads_captions = "photo" in method.READS, "captions" in method.READS

    def draw(batch: FeatureBatch) -> Iterator[Made]:
        photos = [by_id[key] for key in batch.ids]
        tensors = to_device(batch.tensors | read_batch(second, batch, method.READS), device,
                            dtype)
        if space is not None and "patches" in tensors:
            tensors["patches"] = space(tensors["patches"])
        maps = method.make_cams(CamBatch(
            batch.ids, batch.grid, tensors, [tags[key] for key in batch.ids],
            rows, index, of_rows, prototypes.photos, head,
            [read_known_photo(workspace, photo) for photo in photos] if reads_photo else (),
            [photo.captions for photo in photos] if reads_captions else ()), settings.of_method)
        for key, cams in zip(batch.ids, maps, strict=True):
            yield key, {"cam": cams.to(dtype_of(settings.store)).cpu(), "classes": tags[key]}

    batches = feature_batches(features, todo, wanted, settings.batch_size, device=device)
    return run_batches(batches, draw,
                       lambda _: smaller_photos_hint(features.header))
