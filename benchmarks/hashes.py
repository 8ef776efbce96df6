"""What the identity of photos costs: hashing them, and seeing that nothing has changed.

    python benchmarks/hashes.py --photos 17125 --bytes 110000

Files of random bytes, as many and as large as VOC's photos, in a folder of their own. They have
just been written, so they are in the system's cache; the first time all are read, later only their
size, times and inodes are looked at. Where others use the cores too, the seconds of a core tell.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from vpltool.file_hashes import FOLDER, hashes_of


def measure(folder: Path, count: int, size: int) -> list[str]:
    """Time for hashing files, and for seeing that none has changed."""
    names = [f"{number:06}.jpg" for number in range(count)]
    content = os.urandom(size)
    old = time.time() - 3600
    for number, name in enumerate(names):
        (folder / name).write_bytes(number.to_bytes(8, "little") + content)
        os.utime(folder / name, (old, old))
    # What has changed a moment ago is not remembered.
    time.sleep(3)
    taken = []
    for _ in range(2):
        began, core = time.perf_counter(), time.process_time()
        assert len(set(hashes_of(folder, names).values())) == count
        taken.append(f"{time.perf_counter() - began:.2f} s "
                     f"({time.process_time() - core:.2f} s of a core)")
    return taken


def main() -> None:
    """Print both times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=17125)
    parser.add_argument("--bytes", type=int, default=110_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        os.environ[FOLDER] = f"{base}/cache"
        photos = Path(base) / "photos"
        photos.mkdir()
        first, later = measure(photos, options.photos, options.bytes)
    print(f"{options.photos:,} photos of {options.bytes / 1e3:.0f} kB: {first} to hash them, "
          f"{later} when nothing has changed")


if __name__ == "__main__":
    main()
