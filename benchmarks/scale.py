"""What a photo costs beyond its own work: lists, manifests and files, and what that is for many.

    python benchmarks/scale.py            # a minute; the tables of docs/scale.md

Measured over as many photos as fit into a minute, and multiplied; times are of one core, without
waiting for other work (process time), so disks slower than this machine's take longer.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vpltool.formats import Header, Photo, open_output, read_tensors, write_tensors
from vpltool.formats.packed import PACKED, TarSlice, packed_slices, read_packed, write_tar
from vpltool.formats.shards import Shard, shard_of
from vpltool.formats.storage import tensors_of
from vpltool.formats.workspace import read_images

PHOTOS = (82_081, 1_000_000, 100_000_000)
SHARDS = 1000


def timed(work: Callable[[], object], count: int) -> float:
    """Microseconds of one core that a photo takes."""
    begun = time.process_time()
    work()
    return (time.process_time() - begun) / count * 1e6


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_lists(folder: Path, count: int) -> dict[str, float]:
    """Measure `images.jsonl`, the shards and a manifest of so many photos."""
    photos = [Photo(f"part-{number // 10_000:05}/{number:09}",
                    f"part-{number // 10_000:05}/{number:09}.jpg", ("dog", "person"), ("train",))
              for number in range(count)]
    file = folder / "images.jsonl"
    file.write_text("".join(photo.to_json() + "\n" for photo in photos))
    before = resident()
    kept = []
    read = timed(lambda: kept.extend(read_images(file)), count)
    memory = (resident() - before) / count
    own = {photo.id: "dog person" for photo in photos}
    return {
        "list: read, µs": read, "list: bytes on disk": file.stat().st_size / count,
        "list: bytes in memory": memory,
        "shard of an id, µs": timed(lambda: [shard_of(photo.id, SHARDS) for photo in photos],
                                    count),
        "manifest: bytes": len(json.dumps(own, indent=1)) / count,
        "manifest: write and read, µs": timed(lambda: json.loads(json.dumps(own, indent=1)), count),
    }


def measure_files(folder: Path, count: int) -> dict[str, float]:
    """Measure writing, finding and opening so many small files."""
    header = Header("cams", "cam", {"split": "train"})
    ids = [f"{number:06}" for number in range(count)]
    tensors = {"cam": torch.zeros(2, 24, 32).half(), "classes": torch.zeros(2).long()}
    output = open_output(folder / "train", header, ids, shard=Shard(0, 2))

    def write() -> None:
        output.begin()
        for key in ids:
            output.write_tensors(key, tensors)

    def read() -> None:
        for key in ids:
            read_tensors(output.path_of(key), "cams")

    return {"file: write, µs": timed(write, count), "file: read, µs": timed(read, count),
            "file: find done, µs": timed(
                lambda: open_output(folder / "train", header, ids, shard=Shard(0, 2)), count)}


FEATURES = 3_150_000
"""Bytes of a photo's features, of the default `--keep`."""


def measure_tars(folder: Path, count: int, packed: int) -> dict[str, float]:
    """Measure the index of so many photos in tars; packing and reading some, beside files."""
    (folder / PACKED).mkdir(parents=True)
    in_tar = 1_000_000_000 // FEATURES
    for number in range(0, count, in_tar):
        name = f"0-of-1-{number // in_tar:06}"
        (folder / PACKED / f"{name}.json").write_text(json.dumps({
            "tar": f"s3://bucket/features/{name}.tar", "members": {
                f"part-{at // 10_000:05}/{at:09}": [at % in_tar * FEATURES,
                                                   (at % in_tar + 1) * FEATURES]
                for at in range(number, min(number + in_tar, count))}}, separators=(",", ":")))
    size = sum(file.stat().st_size for file in (folder / PACKED).iterdir())
    before = resident()
    kept: dict[str, TarSlice] = {}
    read = timed(lambda: kept.update(packed_slices(folder)), count)
    memory = (resident() - before) / count
    other = folder / "files"
    header = Header("features", "extract", {"split": "train"})
    tensors = {"patches": torch.zeros(1, FEATURES // 2).half(), "grid": torch.zeros(2).long()}
    files = {f"{number:06}": other / f"{number:06}.safetensors" for number in range(packed)}
    for file in files.values():
        write_tensors(file, header, tensors)
    write = timed(lambda: write_tar(other, "0-of-1-000000", "", files), packed)
    places = packed_slices(other)

    def read_tars() -> None:
        for key, file in files.items():
            tensors_of(read_packed(places[key], file.name), "features", (), key, "")

    return {"index of tars: read, µs": read, "index of tars: bytes on disk": size / count,
            "index of tars: bytes in memory": memory, "features: pack, µs": write,
            "features: read of a tar, µs": timed(read_tars, packed),
            "features: read of a file, µs": timed(
                lambda: [read_tensors(file, "features") for file in files.values()], packed)}


def format_report(measured: dict[str, float]) -> str:
    """Spell a table: each cost of a photo, and of many photos in one process or one of many."""
    lines = ["| cost | a photo | " + " | ".join(f"{count:,}" for count in PHOTOS) + " |",
             "| --- | ---: |" + " ---: |" * len(PHOTOS)]
    for name, value in measured.items():
        seconds = name.endswith("µs")
        cells = [f"{value * count / 1e6:,.0f} s" if seconds else f"{value * count / 1e9:,.2f} GB"
                 for count in PHOTOS]
        lines.append(f"| {name.removesuffix(', µs')} | "
                     f"{value:,.1f} {'µs' if seconds else 'B'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--packed", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_lists(Path(folder), options.photos)
        measured |= measure_files(Path(folder), options.files)
        measured |= measure_tars(Path(folder) / "packed", options.photos, options.packed)
    print(format_report(measured))


if __name__ == "__main__":
    main()
