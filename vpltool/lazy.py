"""numpy, torch, Pillow and OpenCV, imported when one of their names is used for the first time.

A command's `--help` must not wait two seconds for torch, so a module that help imports cannot say
`import torch` at its top. It says `from vpltool.lazy import Tensor, torch` instead: type checkers
see the packages themselves, and the first attribute that is looked up imports them. `Tensor` is for
annotations; at run time it is a name without a class behind it (`torch.Tensor` has one).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import cv2
    import numpy as np
    import numpy.typing as npt
    import torch
    import torch.nn.functional as F
    from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
    from torch import Tensor
else:
    class _Lazy(ModuleType):
        """A stand-in for a module, which imports it at its first use."""

        def __getattr__(self, name: str) -> object:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    np, npt, torch, F, cv2 = map(_Lazy, (
        "numpy", "numpy.typing", "torch", "torch.nn.functional", "cv2"))
    Image, ImageDraw, ImageFilter, ImageFont, ImageOps = map(_Lazy, (
        "PIL.Image", "PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageFont", "PIL.ImageOps"))
    Tensor = "torch.Tensor"

__all__ = ["F", "Image", "ImageDraw", "ImageFilter", "ImageFont", "ImageOps", "Tensor", "cv2",
           "no_grad", "np", "npt", "torch"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def no_grad(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return the function run without gradients: `@torch.no_grad()`, but imports no torch."""
    @functools.wraps(function)
    def without_gradients(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.no_grad():
            return function(*args, **kwargs)

    return without_gradients
