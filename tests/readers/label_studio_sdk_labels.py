"""Read tasks with Label Studio's SDK, against their configuration: `… DIR OUT.npz`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

folder, out = Path(sys.argv[1]), sys.argv[2]
interface = LabelInterface((folder / "config.xml").read_text())
interface.validate()
(tool,) = interface.controls
found = {}
for task in json.loads((folder / "tasks.json").read_text()):
    (prediction,) = task["predictions"]
    for region in prediction["result"]:
        assert interface.validate_region(region), region["id"]
        value, labels = region["value"], list(tool.labels)
        size = (region["original_height"], region["original_width"])
        canvas = found.setdefault(task["data"]["photo"].replace("/", "__"),
                                  np.zeros(size, np.uint8))
        inside = np.reshape(decode_rle(value["rle"]), (*size, 4))[..., 3] > 0
        canvas[inside] = labels.index(value["brushlabels"][0]) + 1
np.savez(out, **found)
