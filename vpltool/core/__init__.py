"""The mathematics, from tensors to tensors: no artifact paths, no command line, no printing."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
