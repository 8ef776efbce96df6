"""`recipes`: lists the recipes and their values, or prints one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool.json_text import JsonObject
from vpltool.recipes.parse import find_recipe, read_recipe, recipe_files
from vpltool.settings import Settings, Stage, setting


@dataclass(frozen=True, kw_only=True)
class RecipesSettings(Settings):
    """Settings of `recipes`."""

    recipe: str = setting("", "Recipe to print; default: list all.", positional=True,
                          metavar="[NAME-OR-FILE]")


STAGE = Stage(order=3, panel="1. Begin", reads=(), writes=(), settings=RecipesSettings, begins=True)


def run(_path: Path, settings: RecipesSettings) -> str | list[JsonObject]:
    """List the recipes and their values, or print one as a template for your own.

    Example: vpltool recipes own-photos

    Next: vpltool run own-photos photos=PHOTOS tags=tags.csv
    """
    if settings.recipe:
        return find_recipe(settings.recipe).read_text("utf-8-sig")
    listed = []
    for name, path in recipe_files().items():
        recipe = read_recipe(path)
        listed.append({"name": name, "title": recipe.title, "values": [
            {"name": value.name, "default": value.default, "about": value.about}
            for value in recipe.values]})
    return listed


def show(result: str | list[JsonObject], _values: Mapping[str, object]) -> str:
    """Format the list: a line a recipe, and a line for each of its values."""
    if isinstance(result, str):
        return result.rstrip("\n")
    lines = []
    for entry in result:
        lines.append(f"{entry['name']:12} {entry['title']}")
        for value in entry["values"]:
            default = "required" if value["default"] is None else value["default"] or "not set"
            lines.append(f"  {value['name']:12} {value['about']} ({default})")
    return "\n".join(lines)
