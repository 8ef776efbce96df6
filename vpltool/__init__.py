"""vpltool: photos with image-level tags in, a trained segmenter out.

    from vpltool import Segmenter, Workspace

    work = Workspace("work/photos")
    work.cam(prototypes="vision", method="dense")
    labels = Segmenter.load("work/photos/decoder/vision-dense.safetensors")("photo.jpg").labels
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "darwin":
    # Read when torch is loaded: what Apple's GPUs cannot do, the CPU does.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

if "OMP_WAIT_POLICY" not in os.environ:
    # Read when torch is loaded. Its threads wait for each other by spinning, for milliseconds. On
    # cores that others use, that takes many times as long as the work. A 60th of it costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vpltool.api import Workspace
    from vpltool.errors import PhotosFailed, VplError
    from vpltool.segmenter import Segmenter

__all__ = ["PhotosFailed", "Segmenter", "VplError", "Workspace", "__version__"]

_HOMES = {"Workspace": "vpltool.api", "Segmenter": "vpltool.segmenter",
          "VplError": "vpltool.errors", "PhotosFailed": "vpltool.errors"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts quickly."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vpltool' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
