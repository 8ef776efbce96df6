"""torch, numpy and other packages, imported at the first use of one of their names.

A command's `--help` must not wait two seconds for torch. So modules that help imports have
`from vpltool.lazy import Tensor, torch` at their top instead of `import torch`: type checkers see
the packages, and the first attribute that is looked up imports them. `Tensor` is for annotations
only; at run time it is a string.

The same holds for our own files that need torch when they are imported, since a class in them
derives from `nn.Module`: if a package's `__getattr__` is `modules_of(__name__)`, then
`from vpltool.core import segment` imports nothing until `segment.labels_of` is looked up.
`from vpltool.core.segment import labels_of` imports at once. `formats` also has names of its files:
`from vpltool import formats` imports none of them, `formats.Workspace` one.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import cv2
    import fsspec
    import matplotlib.axes
    import matplotlib.colors
    import matplotlib.figure
    import matplotlib.lines
    import matplotlib.patheffects
    import numpy as np
    import numpy.typing as npt
    import PIL.TiffImagePlugin as TiffImagePlugin
    import pycocotools.mask
    import rasterio.features
    import safetensors.torch
    import scipy.ndimage
    import scipy.optimize
    import skimage.color
    import skimage.segmentation
    import torch
    import torch.nn.functional as F
    from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, PngImagePlugin
    from torch import Tensor
else:
    class _Lazy(ModuleType):
        """A proxy that imports a module, or a submodule, at its first use."""

        def __getattr__(self, name: str) -> object:
            module = importlib.import_module(self.__name__)
            path = f"{self.__name__}.{name}"
            try:
                value = (getattr(module, name) if hasattr(module, name)
                         else importlib.import_module(path))
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
                raise AttributeError(f"module {self.__name__!r} has no {name!r}") from None
            setattr(self, name, value)
            return value

    np, npt, torch, F, cv2 = map(_Lazy, (
        "numpy", "numpy.typing", "torch", "torch.nn.functional", "cv2"))
    fsspec, matplotlib, pycocotools, rasterio, safetensors, scipy, skimage = map(_Lazy, (
        "fsspec", "matplotlib", "pycocotools", "rasterio", "safetensors", "scipy", "skimage"))
    Image, ImageDraw, ImageFilter, ImageFont, ImageOps = map(_Lazy, (
        "PIL.Image", "PIL.ImageDraw", "PIL.ImageFilter", "PIL.ImageFont", "PIL.ImageOps"))
    PngImagePlugin, TiffImagePlugin = map(_Lazy, ("PIL.PngImagePlugin", "PIL.TiffImagePlugin"))
    Tensor = "torch.Tensor"

__all__ = ["F", "Image", "ImageDraw", "ImageFilter", "ImageFont", "ImageOps", "PngImagePlugin",
           "Tensor", "TiffImagePlugin", "cv2", "fsspec", "matplotlib", "modules_of", "no_grad",
           "np", "npt", "pycocotools", "rasterio", "safetensors", "scipy", "skimage", "torch"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def no_grad(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function to run without gradients, as `@torch.no_grad()`, but import no torch."""
    @functools.wraps(function)
    def without_gradients(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with torch.no_grad():
            return function(*args, **kwargs)

    return without_gradients


class _LazyFile(ModuleType):
    """A proxy for a file of ours; names that are set on it are set in the file."""

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        """Names of the file, so that pytest can set one and restore it."""
        return importlib.import_module(self.__name__).__dict__

    def __getattr__(self, name: str) -> object:
        return getattr(importlib.import_module(self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(importlib.import_module(self.__name__), name, value)


def modules_of(package: str, names: Mapping[str, Sequence[str]] | None = None
               ) -> Callable[[str], object]:
    """Return the `__getattr__` of a package whose files are imported at their first use.

    `names` has the names that the package also exports, by module.
    """
    homes = {name: module for module, some in (names or {}).items() for name in some}

    def find(name: str) -> object:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        path = f"{package}.{name}"
        if name.startswith("__") or importlib.util.find_spec(path) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _LazyFile(path)

    return find
