"""Files: kinds, headers, atomic writes, resuming. Only this package reads and writes artifacts."""

from typing import TYPE_CHECKING

from vpltool.lazy import modules_of

if TYPE_CHECKING:
    from vpltool.file_hashes import identity_of_file
    from vpltool.formats.header import Header, identity_of_many
    from vpltool.formats.input_folders import InputFolder, find_folder, open_input
    from vpltool.formats.kinds import IGNORE, KINDS
    from vpltool.formats.labels import read_drawn_labels, read_labels, voc_palette, write_labels
    from vpltool.formats.outputs import OutputFolder, finish_all, open_output
    from vpltool.formats.storage import (
        describe,
        expect_header,
        read_json,
        read_tensors,
        write_json,
        write_tensors,
    )
    from vpltool.formats.workspace import Photo, Workspace, open_workspace
    from vpltool.json_text import JsonObject
else:
    __getattr__ = modules_of(__name__, {
        "vpltool.file_hashes": ("identity_of_file",),
        "vpltool.formats.header": ("Header", "identity_of_many"),
        "vpltool.formats.input_folders": ("InputFolder", "find_folder", "open_input"),
        "vpltool.formats.kinds": ("IGNORE", "KINDS"),
        "vpltool.formats.labels": (
            "read_drawn_labels", "read_labels", "voc_palette", "write_labels"),
        "vpltool.formats.outputs": ("OutputFolder", "finish_all", "open_output"),
        "vpltool.formats.storage": ("describe", "expect_header", "read_json", "read_tensors",
                                    "write_json", "write_tensors"),
        "vpltool.formats.workspace": ("Photo", "Workspace", "open_workspace"),
        "vpltool.json_text": ("JsonObject",)})

__all__ = [
    "Header", "IGNORE", "InputFolder", "JsonObject", "KINDS", "OutputFolder", "Photo", "Workspace",
    "describe", "expect_header", "find_folder", "finish_all", "identity_of_file",
    "identity_of_many", "open_input", "open_output", "open_workspace",
    "read_drawn_labels", "read_json", "read_labels", "read_tensors", "voc_palette", "write_json",
    "write_labels", "write_tensors",
]
