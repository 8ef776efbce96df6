"""Methods of the comparison, read from a recipe: each heading begins one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool.errors import VplError
from vpltool.recipes.parse import Recipe, Rounds, Step, Value, read_recipe
from vpltool.recipes.runner import checked_steps

BUNDLED = Path(__file__).with_name("methods.recipe")

Steps = Sequence[Step | Rounds]


@dataclass(frozen=True)
class Method:
    """A method, or several together.

    Args:
        name: what the table calls it.
        source: paper and venue.
        published: the paper's numbers, in words; empty if it has none that compare.
        steps: seed to its steps; of seed 0 alone, where nothing is random. Rounds over the splits
            make its CAMs, or its masks.
    """

    name: str
    source: str
    published: str
    steps: Mapping[int, Steps]


def read_methods(path: Path, values: Mapping[str, str], seeds: Sequence[int], work: Path
                 ) -> tuple[Steps, list[Method]]:
    """Read what is compared, and check every line.

    Args:
        path: a recipe. Each `say NAME | SOURCE | PUBLISHED` begins a method.
        values: the recipe's values, which it need not declare.
        seeds: a run each, for methods with anything random.
        work: the workspace of the comparison.

    Returns:
        the steps that all methods build on, which are the bundled ones if the recipe has none; and
        the methods.

    Raises:
        VplError: the file is not a recipe, a line is not a command, or a method makes nothing.
    """
    recipe = read_recipe(path)
    known = {value.name for value in recipe.values}
    recipe = replace(recipe, values=(*recipe.values, *(
        Value(name, "", "") for name in (*values, "seed") if name not in known)))
    of_seeds = {seed: _sections(recipe, {**values, "seed": str(seed)}, work)
                for seed in dict.fromkeys((0, *seeds))}
    begin: Steps = of_seeds[0].pop("")
    if not begin and path != BUNDLED:
        begin = read_methods(BUNDLED, values, (), work)[0]
    methods = []
    for heading, steps in of_seeds[0].items():
        name, source, published = (part.strip() for part in f"{heading}||".split("|")[:3])
        if not any(isinstance(step, Rounds) for step in steps):
            raise VplError(f"{path}: `{name}` makes no CAMs and no masks",
                           "lines between `each split in $learn $score` and `end` make them")
        seeded = any(found[heading] != steps for found in of_seeds.values())
        methods.append(Method(name, source, published, {
            seed: of_seeds[seed][heading] for seed in seeds} if seeded else {0: steps}))
    return begin, methods


def _sections(recipe: Recipe, values: Mapping[str, str], work: Path
              ) -> dict[str, list[Step | Rounds]]:
    """Heading to the steps below it; those before the first heading are below an empty one."""
    found: dict[str, list[Step | Rounds]] = {"": []}
    heading = ""
    for step in checked_steps(recipe, values, work)[0]:
        if isinstance(step, Step) and step.heading:
            heading = step.heading
            found[heading] = []
        else:
            found[heading].append(step)
    return found
