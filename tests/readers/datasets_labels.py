"""Read an imagefolder with Hugging Face `datasets`: `datasets_labels.py DIR OUT.npz`."""

from __future__ import annotations

import sys

import numpy as np
from datasets import load_dataset

folder, out = sys.argv[1:]
rows = load_dataset("imagefolder", data_dir=folder, cache_dir=f"{out}.cache")["train"]
assert all(row["image"].size == row["mask"].size for row in rows)
np.savez(out, **{row["photo"].replace("/", "__"): np.asarray(row["mask"]) for row in rows})
