"""Put a segmenter into one file: decoder, CLIP's vision tower, classes, licences.

`vpltool predict PHOTOS --segmenter FILE` and `Segmenter.load(FILE)` need nothing else: no
workspace, no download, no open_clip. A .safetensors holds numbers and no code. Half precision is
used where it loses nothing.

Example: vpltool export bundle --what segmenter --max-side 512 --licence CC-BY-4.0

Next: vpltool predict PHOTOS --segmenter FILE, or vpltool push ORGANISATION/NAME
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool.formats import Header
from vpltool.formats.bundles import write_bundle
from vpltool.methods.exports._segmenter import SegmenterSettings, inference_config
from vpltool.methods.inputs import TrainedSegmenter
from vpltool.settings import setting

READS = ()
EXPORTS = "segmenter"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings(SegmenterSettings):
    """Settings of a bundle."""

    clip: str = setting("weights", "weights: CLIP's vision tower goes into the file; identity: "
                                   "only its name, for machines that have it or can download it.",
                        choices=("weights", "identity"))


def export(segmenter: TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write the file."""
    from vpltool.clip.stored_towers import tower_config

    made, tower = segmenter.header, segmenter.encoder.vision
    stored = settings.clip == "weights"
    facts = {
        "segmenter": made.facts["segmenter"], "config": made.facts["config"],
        "reads": list(segmenter.network.reads),
        **inference_config(segmenter, settings), "tower": tower_config(tower) if stored else {},
        "trained": {"command": made.command, "options": made.options, "version": made.version,
                    "preset": made.preset.get("name", "")}}
    header = Header(
        kind="bundle", command="export", options={"method": "bundle", "clip": settings.clip},
        inputs={"decoder": segmenter.identity}, model=made.model, facts=facts)
    write_bundle(path, header, segmenter.network.state_dict(),
                 tower.state_dict() if stored else {})
    return [path]
