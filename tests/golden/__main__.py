"""Record `expected.json` again; texts that another instruction set changes become `*`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from golden.record import masked

OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""What makes a machine compute as one without AVX-512, whose sums differ in the last bit."""

records = []
for variables in ({}, OLDER):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "work").mkdir()
        subprocess.run([sys.executable, "-m", "golden.record", f"{folder}/work"], check=True,
                       env=os.environ | variables | {
                           "VPLTOOL_CACHE": f"{folder}/cache", "VPLTOOL_FSYNC": "0",
                           "OMP_NUM_THREADS": "1"})
        records.append(json.loads((Path(folder) / "record.json").read_text()))
file = Path(__file__).parent / "expected.json"
file.write_text(json.dumps(masked(*records), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
