"""`vpltool presets`: the protocols that have a name."""

from __future__ import annotations

from typing import Annotated

import typer

from vpltool.presets import find_preset, preset_files, read_preset
from vpltool.stage import Stage

STAGE = Stage(order=7, panel="1. Begin", reads=(), writes=())


def presets(
    ctx: typer.Context,
    preset: Annotated[str, typer.Argument(
        metavar="[NAME-OR-FILE]", help="Check this one and print it; default: list those there "
                                       "are.")] = "",
) -> None:
    """List the presets, with the hash of what each sets; or check one and print it.

    A preset is a TOML file: a table a command, a line an option. What is printed is a valid
    start for your own: vpltool presets vpl-voc > mine.toml

    Example: vpltool presets vpl-voc

    Next: vpltool --preset vpl-voc prepare voc VOCdevkit/VOC2012
    """
    commands = ctx.find_root().command
    if preset:
        read_preset(preset, commands)
        print(find_preset(preset).read_text("utf-8"), end="")
        return
    for name, path in preset_files().items():
        title = path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
        print(f"{name:13} {read_preset(name, commands).identity}  {title}")
