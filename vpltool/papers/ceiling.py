"""The ceiling of a segmenter: the same one, trained with true masks instead of pseudo masks.

    python -m vpltool.papers.ceiling WORK
    python -m vpltool.papers.ceiling WORK --decoder segmenter --score val

How much of it a segmenter from tags reaches says what the pseudo masks cost, apart from what the
photos, the encoder and the segmenter allow. This is a measurement: its segmenter goes to
WORK/tables/ceiling, where no other command looks, and its header says what it has learned from.
Everything but the masks is as in the header of the segmenter that it is compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import api, console, formats
from vpltool.core import discriminant, training
from vpltool.core.photos import photo_size
from vpltool.engine.features import open_features
from vpltool.engine.prototypes import read_prototypes
from vpltool.engine.segmenters import find_segmenter
from vpltool.errors import VplError
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import folder_of, result_path
from vpltool.lazy import Image, Tensor, np
from vpltool.papers.program import parser_of, run_program
from vpltool.parallel.batches import feature_batches
from vpltool.parallel.device import find_device
from vpltool.stages._truth import read_truth
from vpltool.state import Artifact, read_state
from vpltool.tables import markdown_table


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("ceiling", __doc__)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--decoder", default="", metavar="NAME",
                        help="the segmenter that learned from pseudo masks; default: the only one")
    parser.add_argument("--score", default="val", metavar="SPLIT",
                        help="a split that it has not learned from")
    parser.add_argument("--max-side", type=int, default=None, metavar="PIXELS",
                        help="of predict; default: as at the features that it learned from")
    return parser.parse_args(argv)


def write_true_masks(workspace: formats.Workspace, photos: list[formats.Photo], folder: Path
                     ) -> None:
    """Write true masks as labels of the workspace, ID.png; those that are there are kept.

    Raises:
        VplError: a photo has none, or it does not fit.
    """
    without = [photo.id for photo in photos if photo.mask is None]
    if without:
        raise VplError(f"{len(without)} of {len(photos)} photos have no true mask, such as "
                       f"{without[0]}", "a ceiling needs them: prepare the workspace with masks")
    with console.progress("true masks", len(photos)) as advance:
        for photo in photos:
            path = folder / f"{photo.id}.png"
            if not path.exists():
                size = photo_size(workspace.image_path(photo))
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as temporary:
                    Image.fromarray(read_truth(workspace, photo, size)).save(temporary, "PNG")
            advance()


def ceiling(work: Path, decoder: str, score: str, max_side: int | None = None
            ) -> formats.JsonObject:
    """Train with true masks what a segmenter learned from pseudo masks, and score both on a split.

    `decoder` is the NAME of the segmenter, empty: the only one; `max_side` that of predict, None:
    as at the features.

    Returns:
        `decoder`, `split`, and the mIoU `from_tags` and `from_true_masks`, and the `share`.

    Raises:
        VplError: something is missing, or a step failed.
    """
    workspace = formats.open_workspace(work)
    segmenter = find_segmenter(work, decoder)
    path = segmenter.path
    trained = _artifact_of(workspace, path)
    if trained is None:
        raise VplError(f"{path} is not in the folder of decoders of the workspace",
                       f"one of those in {folder_of(workspace.path, 'decoder')}")
    call = trained.call()
    features = _artifact_of(workspace, Path(call.get("features") or result_path(
        workspace.path, "features", call.get("split", "train"))))
    if max_side is None:
        max_side = (int(features.header.options.get("max_side", 0)) if features
                    else int(call.get("max_side", 1024)))
    split = str(segmenter.header.options.get("split", "train"))
    if split == score:
        raise VplError(f"{path} was trained on the split `{score}`", "score another split")
    target = work / "tables/ceiling"
    masks = folder_of(target, "masks") / split
    write_true_masks(workspace, workspace.photos(split), masks)
    run = api.Workspace(work)
    other = run.train_decoder(**dict(call) | {
        "masks": str(masks), "name": path.stem, "out": target / f"{path.stem}.safetensors",
        "update": True})
    found = {}
    for name, file in (("from_tags", path), ("from_true_masks", other)):
        out = result_path(target, "predictions", f"{name}/{path.stem}", score)
        run.predict(decoder=str(file), split=score, max_side=max_side, out=out, update=True)
        found[name] = run.eval(what=str(out), split=score,
                               out=target / f"{path.stem}-{name}.json")["miou"]
    result = {"decoder": path.stem, "split": score, **found,
              "share": found["from_tags"] / max(found["from_true_masks"], 1e-9)}
    formats.write_json(target / f"{path.stem}-{score}.json", result)
    return result


def cam_ceiling(work: Path, split: str = "train") -> float:
    """Score the CAMs of a discriminant of true masks, where `own-photos` has one of the tags.

    It learns from the photos of the split, with their tags, and is scored on them.

    Returns:
        the mIoU, after the same refinement.

    Raises:
        VplError: something is missing, or a step failed.
    """
    workspace = formats.open_workspace(work)
    target = work / "tables/ceiling"
    photos, masks = workspace.photos(split), folder_of(target, "masks") / split
    write_true_masks(workspace, photos, masks)
    found = read_prototypes(workspace, "seeds")
    tensors = _true_discriminant(open_features(workspace, None, split),
                                 [photo.id for photo in photos], masks, found.class_index)
    formats.write_tensors(target / "true.safetensors", replace(
        found.header, supervision="true masks", inputs={}, call={},
        facts={name: found.header.facts[name] for name in ("space", "rows")}), tensors)
    run, maps, refined = api.Workspace(work), folder_of(target, "cams"), target / "cams-refined"
    run.cam(prototypes=str(target / "true.safetensors"), method="discriminant", split=split,
            out=maps / split, update=True)
    run.refine(cams=str(maps / split), method="patches", steps=4, mask="none", min_max=False,
               split=split, out=refined / split, update=True)
    return float(run.eval(what=str(refined / split), split=split, out=target / "cams.json")["miou"])


def _true_discriminant(features: formats.InputFolder, ids: Sequence[str], masks: Path,
                       classes: Tensor) -> dict[str, Tensor]:
    """Fit a discriminant to true masks, in the form of `prototypes/seeds`."""
    moments = None
    for batch in feature_batches(features, ids, ("patches",), 8, complete=True):
        for key, patches in zip(batch.ids, batch.tensors["patches"].float(), strict=True):
            moments = moments or discriminant.Moments.zeros(
                len(classes), patches.shape[1], find_device("cpu"))
            labels = np.asarray(Image.open(masks / f"{key}.png"))
            moments.add(patches.double(), discriminant.label_shares(
                training.labels_at(labels, batch.grid), len(classes)).double())
    assert moments is not None
    weight, bias = (rows[classes] for rows in discriminant.discriminant(
        moments, shrinkage=0.1, prior=1.0))
    scale = weight.norm(dim=-1)
    return {"prototypes": weight / scale.clamp_min(1e-12)[:, None], "class_index": classes,
            "scale": scale, "bias": bias}


def _artifact_of(workspace: formats.Workspace, path: Path) -> Artifact | None:
    """What a file or folder of the workspace was made with."""
    return next((artifact for artifact in read_state(workspace).in_order
                 if artifact.path.resolve() == path.resolve()), None)


def main(argv: list[str] | None = None) -> int:
    """Measure, and print a row of Markdown; 0, or 1 with a line that says what to do."""
    options = _options(argv)
    return run_program(options.work, lambda: print(_row(ceiling(
        options.work, options.decoder, options.score, options.max_side))))


def _row(found: formats.JsonObject) -> str:
    """Format what `ceiling` has found as a table of Markdown."""
    return markdown_table(
        ("segmenter", "split", "from tags", "from true masks", "share"),
        [(found["decoder"], found["split"], f"{100 * found['from_tags']:.1f}",
          f"{100 * found['from_true_masks']:.1f}", f"{100 * found['share']:.0f} %")],
        right=range(2, 5))


if __name__ == "__main__":
    sys.exit(main())
