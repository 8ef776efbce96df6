"""What `calibrate` has found out of a segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpltool.formats import identity_of_file
from vpltool.formats.storage import read_json


def calibration_of(work: Path, decoder: Path) -> dict[str, Any] | None:
    """What `calibrate` has found out of a decoder, as it is now; None, if it has not."""
    path = work / "calibration" / f"{decoder.stem}.json"
    if not path.is_file():
        return None
    found = read_json(path, "`calibrate()`")
    return found if found.get("decoder") == identity_of_file(decoder) else None
