"""Recipes: whole jobs as text files of `vpltool` lines, which run in one process."""

from __future__ import annotations

from pathlib import Path

from vpltool.errors import VplError, near_name

SUFFIX = ".recipe"


def recipe_files() -> dict[str, Path]:
    """Name to file of the recipes that come with vpltool."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob(f"*{SUFFIX}"))}


def find_recipe(choice: str) -> Path:
    """File of a recipe given by name or path.

    Raises:
        VplError: there is none.
    """
    known = recipe_files()
    path = known.get(choice, Path(choice))
    if not path.is_file():
        raise VplError(f"{choice}: neither a recipe nor a file", near_name(choice, known))
    return path
