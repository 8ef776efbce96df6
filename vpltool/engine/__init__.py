"""Services shared by stages: photos, inputs, headers, and the per-photo loop; knows no stage."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
