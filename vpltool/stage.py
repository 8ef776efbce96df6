"""`Stage`: what a command declares: its place, inputs, outputs and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vpltool.settings import Settings


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its settings, and its data flow.

    The file of a stage holds a `STAGE`, and a function `run(workspace, settings)` whose docstring
    is the help of its command. A function `show(result, values) -> str`, if there is one, spells
    the result for people (`values`: setting to value); otherwise it is a path, or several.

    Args:
        order: position in the pipeline; commands are listed in this order.
        panel: heading under which `--help` shows the command.
        reads: kinds of file that it reads.
        writes: kinds of file that it writes.
        settings: its settings.
        methods: kind of method that its setting `method` chooses from; empty: none.
        subcommands: whether methods are subcommands (`prepare voc`), not values of `--method`.
        begins: whether it can run where there is no workspace yet; its `run` is given the path.
        together: whether processes that torchrun starts do it together (`parallel.ranks`): only
            the first of them writes files and speaks. Others share the photos, see `shard`.
        moved: option that has become another call, to that call, see `VplError`.
    """

    order: int
    panel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: type[Settings]
    methods: str = ""
    subcommands: bool = False
    begins: bool = False
    together: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
