"""Read CVAT's XML or COCO's instances with Datumaro: `datumaro_labels.py FORMAT DIR OUT.npz`."""

from __future__ import annotations

import sys

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from datumaro.util.mask_tools import rles_to_mask

form, folder, out = sys.argv[1:]
found = {}
for item in Dataset.import_from(folder, form):
    height, width = item.media.size
    canvas = np.zeros((height, width), np.uint8)
    for annotation in sorted(item.annotations, key=lambda entry: entry.z_order):
        if annotation.type == AnnotationType.bbox:
            continue  # the box of an instance, beside its outline
        inside = (annotation.image if annotation.type == AnnotationType.mask
                  else rles_to_mask([annotation.points], width, height))
        canvas[np.asarray(inside) > 0] = annotation.label + 1
    found[item.id] = canvas
np.savez(out, **found)
