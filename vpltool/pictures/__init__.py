"""Pictures: maps and labels over photos, and points in a plane."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
