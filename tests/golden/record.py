"""Run the golden lines in a folder; records of what they said and of every file that they made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from conftest import Run
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from vpltool.clip.catalogue import import_library

Record: TypeAlias = dict[str, Any]

LINES = [line.split() for line in
         (Path(__file__).parent / "lines.txt").read_text().splitlines()]

_TIMES = re.compile(r" in [0-9.]+ (?:s|min|ms)(?: \([0-9.,]+/s\))?")
_NOTES = re.compile(r"(?m)^(?:compiling the CRF \(once per machine\)|.* about \S+ \w+ left.*)\n")
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?")

def record(run: Run, work: Path) -> Record:
    """Run the lines in a new workspace; what they said, and what its files hold.

    Args:
        run: runs a command line in this process.
        work: the folder; it is made the current one by the caller.
    """
    # By numpy: torch's own initial weights differ between kinds of CPU.
    rng = np.random.default_rng(0)
    network = import_library("timm").create_model("vit_tiny_patch16_224", num_classes=0)
    save_file({name: torch.from_numpy(rng.normal(float(".norm" in f".{name}" and "weight" in name),
                                                 0.02, value.shape).astype(np.float32))
               for name, value in network.state_dict().items()}, work / "vit.safetensors")
    said = {}
    for words in LINES:
        result = run(*words)
        assert result.code == 0, f"{words}: {result.err}"
        said[" ".join(words)] = _words(result.out + result.err, work)
    return {"said": said, "files": files_of(work)}


def _words(text: str, work: Path) -> str:
    """Text without times, numbers and notes that differ between machines."""
    return _NUMBERS.sub("0", _TIMES.sub("", _NOTES.sub("", text).replace(str(work), "WORK")))


def files_of(work: Path) -> Record:
    """Record each file alone, but the files of photos folder by folder."""
    found: Record = {}
    for folder in sorted({path.parent for path in work.rglob("*") if path.is_file()}):
        name = folder.relative_to(work).as_posix()
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if (folder / "artifact.json").exists():
            content = json.loads((folder / "artifact.json").read_text())
            content.pop("own", None)
            content.pop("photos", None)
            parts = [path for path in files if path.name != "artifact.json"]
            found[name] = {"artifact.json": content, "files": len(parts),
                           "values": _mean_values(parts)}
            continue
        found.update({path.relative_to(work).as_posix(): _content_of(path, work)
                      for path in files})
    return found


def _content_of(path: Path, work: Path) -> Any:
    if path.suffix == ".safetensors":
        return {"header": _header_of(path), "values": _mean_values([path])}
    if path.suffix == ".png":
        return {"values": _mean_values([path])}
    if path.suffix == ".json":
        return _comparable(json.loads(path.read_text()))
    if path.suffix in (".zip", ".jpg"):
        return path.suffix
    words = _words(path.read_text(errors="replace"), work)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def _comparable(value: Any) -> Any:
    """Long lists as their length: run lengths and counts of pixels follow the last bit."""
    if isinstance(value, dict):
        return {name: _comparable(item) for name, item in value.items()}
    if isinstance(value, list):
        return f"{len(value)} items" if len(value) > 8 else [_comparable(item) for item in value]
    return value


def _header_of(path: Path) -> Record:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        metadata = json.loads(file.read(size)).get("__metadata__", {})
    return {name: _comparable(json.loads(text)) if text[:1] in "{[" else text
            for name, text in metadata.items()}


def _mean_values(paths: list[Path]) -> Record:
    """Per tensor, or for pictures: dtype, shape of the first, and mean and deviation of all."""
    parts: dict[str, list[np.ndarray[Any, Any]]] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            for name, value in load_file(path).items():
                # Statistics of a batch of two crops follow the last bit.
                if ".running_" in name:
                    continue
                parts.setdefault(name, []).append(value)
        elif path.suffix == ".png":
            parts.setdefault("pixels", []).append(np.asarray(Image.open(path)))
    return {name: {"dtype": str(values[0].dtype), "shape": list(values[0].shape),
                   "mean": float(np.mean([value.astype(np.float64).mean() if value.size else 0
                                          for value in values])),
                   "deviation": float(np.mean([value.astype(np.float64).std() if value.size else 0
                                               for value in values]))}
            for name, values in sorted(parts.items())}


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """List where a record differs from the expected one; numbers by more than 2 %.

    Args:
        expected: a record; `*` stands for any text.
        found: the other.
        where: path to the two, for the message.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        return [line for name in sorted(expected.keys() | found.keys())
                for line in (differences(expected[name], found[name], f"{where} {name}")
                             if name in expected and name in found
                             else [f"{where} {name}: only {'' if name in found else 'un'}found"])]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [line for number, (one, other) in enumerate(zip(expected, found, strict=True))
                for line in differences(one, other, f"{where}[{number}]")]
    if isinstance(expected, float) and isinstance(found, int | float):
        same = abs(expected - found) <= 0.02 * max(abs(expected), abs(found)) + 2e-3
    else:
        same = expected == "*" or expected == found
    return [] if same else [f"{where}: {expected!r} is now {found!r}"]


def masked(one: Any, other: Any) -> Any:
    """A record whose texts that differ in another one, and numbers by over 1 %, are `*`."""
    if isinstance(one, dict):
        return {name: masked(value, other[name]) for name, value in one.items()}
    if isinstance(one, list):
        return [masked(*pair) for pair in zip(one, other, strict=True)]
    if isinstance(one, float) and isinstance(other, float):
        return "*" if abs(one - other) > 0.01 * max(abs(one), abs(other)) + 1e-3 else one
    return "*" if isinstance(one, str) and one != other else one


if __name__ == "__main__":
    from conftest import run_in_process

    os.chdir(sys.argv[1])
    Path("../record.json").write_text(json.dumps(record(run_in_process, Path.cwd())))
