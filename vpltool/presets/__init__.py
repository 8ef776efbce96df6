"""Presets: options of several commands in one readable file, so that a protocol has a name."""

from __future__ import annotations

from pathlib import Path

from vpltool.errors import VplError, near_name


def preset_files() -> dict[str, Path]:
    """Name to file of the presets that come with vpltool."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_preset(choice: str) -> Path:
    """File of a preset given by name or path; a VplError if there is none."""
    known = preset_files()
    path = known.get(choice, Path(choice))
    if not path.is_file():
        raise VplError(f"preset {choice}: neither a preset nor a file", near_name(choice, known))
    return path
