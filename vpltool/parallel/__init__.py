"""Parallel execution: threads, processes, batches, memory limits and devices."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if not TYPE_CHECKING:
    __getattr__ = modules_of(__name__)
