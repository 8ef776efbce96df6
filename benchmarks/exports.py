"""What a segmenter loses on its way out: its ONNX graph in float32 and in 8 bits, on a whole split.

    python benchmarks/exports.py WORK NAME [SPLIT] [PHOTOS]

Makes the graphs of a segmenter, labels the photos of a split with each by the program of
docs/deploy.md, and prints a row for each: size, mIoU, pixels labelled as by the float32 graph, and
processor seconds a photo on one thread, from the file of the photo to labels. True masks are read
by this script alone; the workspace is not changed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from vpltool import api
from vpltool.core.metrics import confusion, scores
from vpltool.formats import open_workspace, read_labels

GRAPHS: dict[str, dict[str, Any]] = {
    "float32": {},
    "8 bits, ranges at each run": {"int8": True, "calibrate": 0},
    "8 bits, ranges of 32 photos": {"int8": True, "calibrate": 32}}


def label(session: Any, said: dict[str, Any], path: Path) -> np.ndarray[Any, Any]:
    """Label a photo (H, W) as the program of docs/deploy.md does."""
    photo = Image.open(path).convert("RGB")
    shrink = min(1, (said["max_side"] or max(photo.size)) / max(photo.size))
    patch = said["patch"]
    size = [int(np.ceil((side * shrink - 1e-6) / patch)) * patch for side in photo.size]
    rgb = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)) / 255
    pixels = ((rgb - said["mean"]) / said["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    labels = session.run(["labels"], {"pixels": pixels})[0][0].astype(np.uint8)
    return np.asarray(Image.fromarray(labels).resize(photo.size, Image.Resampling.NEAREST))


def main(work: str, name: str, split: str = "val", most: str = "0") -> None:
    """Measure, and print a table of Markdown."""
    run, workspace = api.Workspace(work), open_workspace(Path(work))
    photos = [photo for photo in workspace.photos(split) if photo.mask][: int(most) or None]
    truths = [read_labels(workspace.path / workspace.root / str(photo.mask)) for photo in photos]
    print(f"{name}, {len(photos)} photos of `{split}`\n")
    print("| graph | size | mIoU | labels as in float32 | processor seconds a photo |")
    print("| --- | ---: | ---: | ---: | ---: |")
    first: list[Any] = []
    for title, options in GRAPHS.items():
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "segmenter.onnx"
            run.export("onnx", what=name, out=graph, measure=0, **options)
            size = graph.stat().st_size / 1e6
            alone = onnxruntime.SessionOptions()
            alone.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(graph), alone)
        said = {key: json.loads(value)
                for key, value in session.get_modelmeta().custom_metadata_map.items()}
        start = time.process_time()
        made = [label(session, said, workspace.image_path(photo)) for photo in photos]
        seconds = (time.process_time() - start) / len(photos)
        first = first or made
        counts = [confusion(truth, labels, len(said["classes"]))
                  for truth, labels in zip(truths, made, strict=True)]
        same = np.mean([np.mean(one == other) for one, other in zip(first, made, strict=True)])
        print(f"| {title} | {size:.0f} MB | {100 * scores(sum(counts[1:], counts[0])).miou:.2f} | "
              f"{100 * same:.2f} % | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
