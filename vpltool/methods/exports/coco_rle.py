"""Write predictions as COCO's results JSON: a region for each class of a photo.

The regions are run lengths, as in COCO's stuff task. Classes other than COCO's are numbered from 1,
and so are their photos; a second JSON says what the numbers mean. Needs pycocotools.

Example: vpltool export coco-rle --split val
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpltool.core.outlines import check_pycocotools, run_lengths
from vpltool.core.photos import photo_size
from vpltool.datasets.words import COCO, COCO_IDS
from vpltool.formats import write_json
from vpltool.formats.streams import write_array
from vpltool.methods.exports._folders import classes_in
from vpltool.methods.exports.coco_panoptic import Settings, number_of
from vpltool.methods.inputs import Predictions

SUFFIX = "-rle.json"


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the JSON, and for other classes than COCO's a JSON with the meaning of its numbers."""
    check_pycocotools()
    workspace, photos = predictions.workspace, predictions.photos
    own = workspace.classes != COCO.classes
    numbers = {photo.id: number if own else number_of(photo)
               for number, photo in enumerate(photos, 1)}
    categories: Sequence[int] = range(1, len(workspace.classes) + 1) if own else COCO_IDS
    write_array(path, ({"image_id": numbers[photo.id], "category_id": categories[label - 1],
                        "segmentation": run_lengths(labels == label)}
                       for photo, labels in predictions.each() for label in classes_in(labels)))
    if not own:
        return [path]
    meaning = path.with_name(f"{path.stem}-categories.json")
    # A data set without annotations, as pycocotools reads it.
    images = []
    for photo in photos:
        height, width = photo_size(workspace.image_path(photo))
        images.append({"id": numbers[photo.id], "height": height, "width": width,
                       "file_name": f"{photo.id}{Path(photo.image).suffix}"})
    write_json(meaning, {"info": {}, "images": images, "annotations": [], "categories": [
        {"id": index, "name": name} for index, name in enumerate(workspace.classes, 1)]})
    return [path, meaning]
