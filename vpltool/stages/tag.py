"""`tag`: tags of untagged photos from the class names."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options
from vpltool.clip import encoders
from vpltool.core import tagging
from vpltool.core.photos import PhotoSettings
from vpltool.engine import headers, models, opening, photo_work
from vpltool.errors import PhotosFailed, counted
from vpltool.formats import Workspace, atomic, kinds, open_input
from vpltool.names import csv_id
from vpltool.parallel.batches import Batch
from vpltool.parallel.device import find_device, find_precision
from vpltool.settings import NoEffect, Stage, setting


@dataclass(frozen=True, kw_only=True)
class TagSettings(options.PerPhoto):
    """Settings of `tag`."""

    prototypes: str = setting("text", "Prototypes to compare patches with; text, or a file.",
                              metavar="NAME-OR-PATH", reads="words")
    share: float = setting(
        0.5, "Relative threshold of a tag; its score is at least min + SHARE·(max - min) of the "
             "photo's scores.", low=0, high=1, record="never", source="TagCLIP, official code")
    least: float = setting(
        0.0, "Absolute threshold of a tag; 0: every photo gets a tag, even if it shows no class.",
        low=0, high=1, record="never")
    tau: float = setting(0.01, "Temperature of the softmax over classes.", low=1e-6,
                         source="CLIP's logit scale 100")
    background: bool = setting(True, "Let background words compete with the classes.")
    patches: str = setting(
        "alone", "Patch embeddings; alone: the last block's output when each patch "
                 "attends only to itself; value: only its value path; block: its output as it is.",
        choices=("alone", "value", "block"), source="TagCLIP, official code")
    blocks: int = setting(3, "Blocks whose attention refines the scores; those just before the "
                             "last.", low=1,
                          source="TagCLIP, official code: blocks 8 to 10 of 0 to 11")
    votes: int = setting(
        4, "Blocks out of 12 that must agree on a patch; they attend to it more than on average; "
           "of a deeper tower, the same share.", low=0, high=12, source="TagCLIP, official code")
    rescore: bool = setting(True, "Crop each likely class and score it again.",
                            source="TagCLIP, official code")
    crop: int = setting(
        224, "Side in pixels that this crop is scaled to.", low=8, source="TagCLIP, official code",
        no_effect=[NoEffect({"rescore": (False,)}, "nothing is cut out")])
    max_side: int = setting(512, "Scale longer photos down to this first; 0: never.", low=0,
                            metavar="PIXELS")
    precision: str = options.precision()
    batch_size: int = options.batch_size(4)
    workers: int = options.workers()


STAGE = Stage(order=25, panel="1. Begin", reads=("workspace", "images", "prototypes"),
              writes=("tags",), settings=TagSettings)


def run(workspace: Workspace, settings: TagSettings) -> list[Path]:
    """Tag photos with CLIP from the class names alone (TagCLIP, AAAI 2024).

    The scores of all classes go to tags/SPLIT, and the resulting tags to tags/SPLIT.csv, which
    `prepare` reads. Check it first, and correct a copy: the file is rewritten each time. Existing
    tags of photos are neither read nor changed.

    Example: vpltool tag --split train

    Next: vpltool prepare folder IMAGES --labels WORK/tags/train.csv

    Returns:
        the CSV, and the folder of scores.

    Raises:
        VplError: an input is missing, or of another model.
        PhotosFailed: some photos cannot be read.
    """
    models.check_words(workspace)
    opened = opening.open_inputs(workspace, settings, ("photo",), ("prototypes",))
    folder = settings.out or kinds.folder_of(workspace.path, "tags") / settings.split
    try:
        opened.make(f"tag {settings.split}", {folder: opened.header("tags", "tag")},
                    lambda todo: _start(opened, settings, opened.paths(todo)))
    except PhotosFailed as error:
        error.result = _write_table(workspace, settings, folder)
        raise
    return _write_table(workspace, settings, folder)


def tagging_of(settings: TagSettings) -> tagging.TagSettings:
    """Return the settings of `core.tagging`."""
    return tagging.TagSettings(settings.tau, settings.blocks, settings.votes,
                               settings.crop if settings.rescore else 0, settings.patches)


def _start(opened: opening.Opened, settings: TagSettings, paths: Mapping[str, Path]
           ) -> Iterator[photo_work.Made]:
    """Load the tower; return an iterator over each photo's scores."""
    device, prototypes = find_device(settings.device), opened.prototypes
    assert prototypes is not None
    dtype = find_precision(settings.precision, device, console.warn)
    encoder = models.load_clip_vision(opened.workspace, device)
    headers.check_same_model(encoder.identity, prototypes.header.model,
                             f"the workspace's CLIP and {prototypes.path}")
    vision = encoders.with_head(encoder, "`tag`").to(dtype)
    words = tagging.Vocabulary.of(prototypes.rows.to(device), prototypes.class_index.to(device),
                                  background=settings.background)
    used = tagging_of(settings)

    def score(batch: Batch) -> Iterator[photo_work.Made]:
        pixels = batch.pixels.to(device, vision.weight.dtype, non_blocking=True)
        found = tagging.tag_scores(vision, pixels, words, used).cpu()
        yield from ((key, {"scores": scores}) for key, scores in zip(batch.ids, found, strict=True))

    return photo_work.run_photos(
        paths, PhotoSettings(vision.patch, encoder.mean, encoder.std, max_side=settings.max_side),
        score, device=device, batch_size=settings.batch_size, workers=settings.workers)


def _write_table(workspace: Workspace, settings: TagSettings, folder: Path) -> list[Path]:
    """Write the CSV of tags for `prepare`, and return its path and the folder.

    Of several shards, only the last one, which finds all scores, writes it.
    """
    photos, classes = workspace.photos(settings.split, settings.limit), workspace.classes
    scored, path = open_input(folder, ("tags",)), folder.parent / f"{folder.name}.csv"
    waiting = [photo.id for photo in photos
               if photo.id not in scored.failed and not scored.path_of(photo.id).exists()]
    if waiting:
        console.note(f"{path} will be written by the last shard: {len(waiting)} of {len(photos)} "
                     "photos remain")
        return [folder]
    tags: dict[str, list[str]] = {}
    with (atomic.atomic_path(path) as temporary,
          temporary.open("w", encoding="utf-8", newline="") as file):
        table = csv.writer(file)
        table.writerow(["id", "labels", "split", "scores"])
        for photo in photos:
            if not scored.path_of(photo.id).exists():
                continue
            scores = scored.read_tensors(photo.id)["scores"]
            are_tags = (tagging.candidates(scores[None], settings.share)[0]
                        & (scores >= settings.least))
            order = scores.argsort(descending=True, stable=True).tolist()
            tags[photo.id] = [classes[number] for number in order if are_tags[number]]
            all_scores = (f"{classes[number]} {float(scores[number]):.3f}" for number in order)
            table.writerow([csv_id(photo.id), _joined(tags[photo.id]), _joined(photo.splits),
                            ";".join(all_scores)])
    counts = Counter(name for names in tags.values() for name in names)
    none = sum(not names for names in tags.values())
    console.note(f"{counted(len(tags), 'photo', 'photos')}, "
                 f"{sum(counts.values()) / max(len(tags), 1):.2f} tags each: "
                 + ", ".join(f"{name} {counts[name]}" for name in classes)
                 + (f"; {none} without a tag" if none else ""))
    return [path, folder]


def _joined(names: Sequence[str]) -> str:
    """Join names as a field of a CSV; a single one with a space needs a semicolon."""
    joined = ";".join(names)
    return f"{joined};" if " " in joined and len(names) == 1 else joined
