"""Labels that come back from labelling tools, a file a format.

A file defines `files(path)`, the files that it would read, none if they are in another format;
`read(path, request)`, which yields a `Labelled` for each photo; and `NEEDS`, the packages that it
imports.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from vpltool.errors import VplError


def find_reader(path: Path) -> tuple[str, ModuleType] | None:
    """Return the name and the module of the format that a file or folder is in.

    None: it is a folder in no format of a tool, so at most one of label images.

    Raises:
        VplError: it is missing, a file in no format, in several, or a package is not installed.
    """
    if not path.exists():
        raise VplError(f"{path} does not exist", "give a file or folder from a labelling tool")
    names = {file.stem.replace("_", "-"): f"vpltool.labelling.{file.stem}"
             for file in sorted(Path(__file__).parent.glob("*.py"))
             if file.stem not in ("__init__", "request", "reading")}
    readers = {name: importlib.import_module(module) for name, module in names.items()}
    found = [name for name, reader in readers.items() if reader.files(path)]
    if not found and path.is_dir():
        return None
    if len(found) != 1:
        raise VplError(f"{path} may be {' or '.join(found)}" if found else
                       f"{path} is in no known format ({', '.join(readers)})",
                       "docs/labelling.md says what each format looks like")
    reader = readers[found[0]]
    for module in reader.NEEDS:
        if importlib.util.find_spec(module) is None:
            raise VplError(f"{found[0]} needs {module}, which is not installed",
                           "pip install 'vpltool[labelling]'")
    return found[0], reader
