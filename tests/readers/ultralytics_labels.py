"""Read a data set as Ultralytics' loader does: `ultralytics_labels.py DIR OUT.npz`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ultralytics.data.dataset import SemanticDataset, YOLODataset
from ultralytics.data.utils import check_det_dataset, polygon2mask

folder, out = Path(sys.argv[1]), sys.argv[2]
data = check_det_dataset(str(folder / "data.yaml"), autodownload=False)
found = {}
if data.get("masks_dir"):
    dataset = SemanticDataset(img_path=data["train"], data=data, task="semantic", augment=False)
    for index, file in enumerate(dataset.im_files):
        found[Path(file).stem] = dataset.load_mask(index)
else:
    dataset = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False)
    for label in dataset.labels:
        stem, (height, width) = Path(label["im_file"]).stem, label["shape"]
        canvas = np.zeros((height, width), np.uint8)
        # Resampled to 1000 points, as for training.
        read = dataset.update_labels_info(dict(label))
        read["instances"].denormalize(width, height)
        for number, segment in zip(read["cls"].ravel(), read["instances"].segments, strict=True):
            inside = polygon2mask((height, width), [segment.reshape(-1)])
            canvas[inside > 0] = int(number) + 1
        found[stem] = canvas
np.savez(out, **found)
