"""What stages share: photos, inputs, headers, and the frame of the work; it knows no stage."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
