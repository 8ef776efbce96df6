"""Drawn photos with tags, exact labels and captions: data to learn from without a download."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
