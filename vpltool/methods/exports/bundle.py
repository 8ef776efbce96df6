"""Put a segmenter into one file: decoder, encoder, classes, licences.

`vpltool predict PHOTOS --segmenter FILE` and `Segmenter.load(FILE)` need nothing else: no
workspace, no download, no open_clip. Only the method of a segmenter of your own is not in it:
whoever runs the file needs the method's file, too. A .safetensors holds numbers and no code. Half
precision is used where it loses nothing.

Example: vpltool export bundle --what segmenter --max-side 512 --licence CC-BY-4.0

Next: vpltool predict PHOTOS --segmenter FILE, or vpltool push ORGANISATION/NAME
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.clip import stored_towers
from vpltool.core import blocks, segment
from vpltool.formats import Header
from vpltool.formats.storage import read_part, write_bundle
from vpltool.lazy import Tensor
from vpltool.methods import FOLDERS, SegmenterMethod, find_method, inputs, load_method
from vpltool.methods.exports._segmenter import SegmenterSettings, inference_config
from vpltool.settings import setting

EXPORTS = "segmenter"
SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Settings(SegmenterSettings):
    """Settings of a bundle."""

    clip: str = setting("weights", "weights: the encoder goes into the file; identity: only its "
                                   "name, for machines that have it or can download it.",
                        choices=("weights", "identity"))


def runs(path: Path, settings: Settings) -> Callable[[Tensor], Tensor] | None:
    """Return a function that runs the file, if it holds its tower."""
    if settings.clip != "weights":
        return None
    header, tensors = read_part(path, "decoder")
    method = load_method(SegmenterMethod, str(header.facts["segmenter"]))
    network = blocks.rebuild(lambda: method.rebuild(header.facts["config"]), tensors).eval()
    tower = stored_towers.tower_from_config(header.facts["tower"], read_part(path, "tower")[1])
    return lambda pixels: segment.photo_logits(tower, network, pixels)


def export(segmenter: inputs.TrainedSegmenter, path: Path, settings: Settings) -> list[Path]:
    """Write the file."""
    made, tower = segmenter.header, segmenter.encoder.vision
    method = find_method("segmenters", str(made.facts["segmenter"]))
    if not method.bundled:
        console.note(f"whoever runs {path} also needs {method.path}, found by {FOLDERS}")
    stored = settings.clip == "weights"
    facts = {
        "segmenter": made.facts["segmenter"], "config": made.facts["config"],
        "reads": list(segmenter.network.reads),
        **inference_config(segmenter, settings),
        **({"about": dict(segmenter.about)} if segmenter.about else {}),
        "tower": stored_towers.tower_config(tower) if stored else {},
        "trained": {"command": made.command, "options": made.options, "version": made.version,
                    "preset": made.preset.get("name", "")}}
    header = Header(
        kind="bundle", command="export", options={"method": "bundle", "clip": settings.clip},
        inputs={"decoder": segmenter.identity}, model=made.model, facts=facts)
    write_bundle(path, header, segmenter.network.state_dict(),
                 tower.state_dict() if stored else {})
    return [path]
