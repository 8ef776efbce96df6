"""`presets`: lists the presets, or prints one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool.preset import read_preset
from vpltool.presets import find_preset, preset_files
from vpltool.settings import Settings, Stage, setting


@dataclass(frozen=True, kw_only=True)
class PresetsSettings(Settings):
    """Settings of `presets`."""

    preset: str = setting("", "Preset to check and print; default: list all.", positional=True,
                          metavar="[NAME-OR-FILE]")


STAGE = Stage(order=7, panel="1. Begin", reads=(), writes=(), settings=PresetsSettings, begins=True)


def run(_path: Path, settings: PresetsSettings) -> str | list[dict[str, str]]:
    """List the presets with a hash of their settings, or check and print one.

    A preset is a TOML file with a table per command and a line per option. The output is a valid
    template for your own: vpltool presets vpl-voc > mine.toml

    Example: vpltool presets vpl-voc

    Next: vpltool --preset vpl-voc prepare voc VOCdevkit/VOC2012
    """
    if settings.preset:
        read_preset(settings.preset)
        return find_preset(settings.preset).read_text("utf-8-sig")
    return [{"name": name, "hash": read_preset(name).identity,
             "title": path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")}
            for name, path in preset_files().items()]


def show(result: str | list[dict[str, str]], _values: Mapping[str, object]) -> str:
    """Format the list, a line each; a preset as it is."""
    if isinstance(result, str):
        return result.rstrip("\n")
    return "\n".join(f"{entry['name']:13} {entry['hash']}  {entry['title']}" for entry in result)
