"""`vpltool inspect`: what a file is, what made it, and from what."""

from __future__ import annotations

import json as spelling
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vpltool.errors import VplError
from vpltool.formats import KINDS, describe, open_workspace, read_json
from vpltool.formats.folders import manifest_of
from vpltool.options import Json
from vpltool.stage import Stage

STAGE = Stage(order=96, panel="4. Scores and pictures", reads=tuple(KINDS), writes=())


def inspect(
    path: Annotated[Path, typer.Argument(
        help="A file that vpltool wrote, a folder of them, or a workspace.")],
    json: Json = False,
) -> None:
    """Say what a file is, what made it, and from what.

    Example: vpltool inspect prototypes/vision.safetensors
    """
    found = _describe(path)
    if json:
        print(spelling.dumps(found))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, entry in value.items():
                print(f"  {name}: {_brief(entry)}")
        else:
            print(f"{key}: {_brief(value)}")


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else spelling.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "…"


def _describe(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise VplError(f"{path} is not there", "vpltool inspect FILE")
    if path.is_dir():
        return _describe_folder(path)
    if path.suffix == ".json":
        return _describe_json(path)
    if path.suffix == ".jsonl":
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {"kind": "images", "photos": len(lines)}
    if path.suffix not in (".safetensors", ".png"):
        raise VplError(f"{path} is of no kind that vpltool writes",
                       "it writes .safetensors, .png, .json and .jsonl")
    described = describe(path)
    result: dict[str, Any] = {"kind": "unknown: no vpltool header"}
    if described.header is not None:
        result = _of_header(asdict(described.header))
    if described.shapes:
        result["tensors"] = {
            name: f"{dtype} {' × '.join(map(str, shape)) or 'scalar'}"
            for name, (dtype, shape) in sorted(described.shapes.items())}
    return result


def _describe_json(path: Path) -> dict[str, Any]:
    content = read_json(path, "")
    if path.name == "workspace.json" or "header" in content:
        return _describe_folder(path.parent)
    if content.get("kind") in ("scores", "gap"):
        return {key: value for key, value in content.items() if key not in ("confusion", "sweep")}
    return {"kind": "JSON", "keys": sorted(content)}


def _describe_folder(path: Path) -> dict[str, Any]:
    if (path / "artifact.json").exists():
        content = manifest_of(path)
        result = _of_header(content["header"])
        suffix = KINDS[result["kind"]].suffix if result["kind"] in KINDS else ""
        result["photos"] = sum(1 for _ in path.rglob(f"*{suffix}"))
        result["complete"] = content["complete"]
        if content["failed"]:
            result["failed"] = content["failed"]
        return result
    workspace = open_workspace(path)
    photos = workspace.photos()
    splits: dict[str, int] = {}
    for photo in photos:
        for split in photo.splits:
            splits[split] = splits.get(split, 0) + 1
    return {
        "kind": "workspace", "data set": workspace.name, "root": workspace.root,
        "model": f"{workspace.model} ({workspace.pretrained})", "photos": len(photos),
        "splits": splits, "classes": list(workspace.classes),
        "with true masks": sum(photo.mask is not None for photo in photos)}


def _of_header(header: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": header["kind"],
        "made by": f"vpltool {header['command']} (version {header['version']})",
        "options": header["options"], "inputs": header["inputs"], "model": header["model"],
        **({"preset": header["preset"]} if header.get("preset") else {}),
        **({"facts": header["facts"]} if header["facts"] else {})}
