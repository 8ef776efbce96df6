"""A group of commands, each of which is made when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from typer import Context
from typer.core import TyperGroup

from vpltool.command_help import group_help, take_help_topic
from vpltool.errors import near_name

_T = TypeVar("_T")


class CommandGroup(TyperGroup):
    """A group of commands that says which one may be meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--help COMMAND` for `COMMAND --help`, and keep the topic that help is asked for.

        Without a command, print the list of them: on stderr, as a usage error.
        """
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            # Typer's own way prints nothing since our help is no page of rich.
            print(self.get_help(ctx), file=sys.stderr)
            ctx.exit(2)
        self._check_name(ctx, self._first_word(args))
        args, topic = take_help_topic(ctx, args, before=self.commands)
        if topic in self.commands:
            args = [topic, "--help"]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """Return the page of the group; with `--help-all`, everything as typer has it."""
        return group_help(ctx, self) or super().get_help(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is named first; a usage error names the nearest."""
        self._check_name(ctx, args[0] if args else "")
        return super().resolve_command(ctx, args)

    def _first_word(self, args: Sequence[str]) -> str:
        """The word that names a command; empty if help is asked for before it."""
        taking = {option for param in self.params if not getattr(param, "is_flag", False)
                  for option in param.opts}
        words = iter(args)
        for word in words:
            if word in ("--help", "-h", "--help-all"):
                break
            if word in taking:
                next(words, "")
            elif not word.startswith("-"):
                return word
        return ""

    def _check_name(self, ctx: Context, name: str) -> None:
        if name and not name.startswith("-") and name not in self.commands:
            ctx.fail(f"no command `{name}`: {_suggestion(name, self.commands, ctx.command_path)}")


def _suggestion(name: str, known: Iterable[str], path: str) -> str:
    names = list(known)
    matches = [entry for entry in names if entry.startswith(name) or f"-{name}" in entry]
    if matches:
        return f"did you mean {' or '.join(f'`{entry}`' for entry in matches)}?"
    hint = near_name(name, names)
    return hint if hint.startswith("did you mean") else f"`{path} --help` lists the commands"


class MadeOnce(Mapping[str, object]):
    """Name to command. A call needs one of dozens, whose options take longest to make."""

    def __init__(self, sources: Mapping[str, _T], make: Callable[[_T], object]) -> None:
        self._sources = sources
        self._make: Callable[[Any], object] = make
        self._made: dict[str, object] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> object:
        if name not in self._made:
            self._made[name] = self._make(self._sources[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)
