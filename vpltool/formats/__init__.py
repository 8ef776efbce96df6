"""Files: kinds, headers, atomic writes, resuming. Only this package reads and writes artifacts."""

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

__all__ = [
    "Header", "IGNORE", "InputFolder", "JsonObject", "KINDS", "OutputFolder", "Photo", "Workspace",
    "describe", "expect_header", "find_folder", "finish_all", "identity_of_file",
    "identity_of_many", "open_input", "open_output", "open_workspace",
    "read_drawn_labels", "read_json", "read_labels", "read_tensors", "voc_palette", "write_json",
    "write_labels", "write_tensors",
]
