"""Provenance: the header of every file, and the configuration hash used for resuming."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from vpltool import __version__
from vpltool.errors import VplError
from vpltool.file_hashes import identity_of_bytes
from vpltool.formats.fields import NUMBER, NUMBERS, OBJECT, SIZE, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.kinds import KINDS
from vpltool.json_text import JsonObject, parse_json
from vpltool.names import without_folders

METADATA_KEY = "vpltool"
"""Metadata key of the header, stored as JSON in .safetensors files and PNGs."""

_FIELDS = {"options": OBJECT, "inputs": TEXT_OF, "model": TEXT_OF, "facts": OBJECT, "version": TEXT,
           "format": NUMBER, "preset": OBJECT, "call": OBJECT, "sources": TEXT_OF,
           "supervision": TEXT}

_OPTIONS = {"split": TEXT, "method": TEXT, "source": TEXT, "keep": TEXTS,
            "layers": NUMBERS, "scale": SIZE, "max_side": SIZE, "confidence": SIZE, "limit": NUMBER}
"""Options that other stages read, if present."""

_FACTS = {"rows": TEXTS, "classes": TEXTS, "reads": TEXTS, "space": TEXT, "aligned": OBJECT,
          "hashes": TEXT_OF}
"""Facts that other stages read, if present."""

_OF_FEATURES = {name: _OPTIONS[name] for name in ("split", "keep", "layers", "scale", "max_side")}

PRESET = {"name": TEXT, "hash": TEXT, "given": OBJECT}
"""Fields of a preset's record, see `under_preset`."""

_presets: list[JsonObject] = [{}]


@contextlib.contextmanager
def under_preset(record: Mapping[str, object]) -> Iterator[None]:
    """Record the preset in every header made in the block.

    The record has the preset's `name`, the `hash` of its settings, and `given`: options that
    override it. It is empty without a preset.
    """
    _presets.append(dict(record))
    try:
        yield
    finally:
        _presets.pop()


def current_preset() -> JsonObject:
    """Return the record of the innermost `under_preset`; empty if there is none."""
    return dict(_presets[-1])


def format_preset(preset: JsonObject) -> str:
    """Format a preset's record: `vpl-voc (0123…), but lambda 0.9`."""
    if not preset:
        return "no preset"
    given = ", ".join(f"{option} {value}" for option, value in preset["given"].items())
    return f"{preset['name']} ({preset['hash']})" + (f", but {given}" if given else "")


@dataclass(frozen=True)
class Header:
    """Kind and provenance of a file: the command that made it, its options and inputs.

    It has no date, host or absolute path, so that the same run gives the same bytes.
    """

    kind: str  # name of the kind of file
    command: str  # the command that made it, such as `learn-prototypes`
    options: JsonObject = field(default_factory=dict)  # options that affect the result
    # identity of each input by role: a hash, see `identity_of_file` and `config_hash`
    inputs: dict[str, str] = field(default_factory=dict)
    # identity of the encoder: `name`, `pretrained`, `fingerprint`, `weights`; empty: none was used
    model: dict[str, str] = field(default_factory=dict)
    # results stored with the data, such as objective, gap or row names
    facts: JsonObject = field(default_factory=dict)
    version: str = __version__  # version of vpltool; files of earlier versions remain valid
    format: int = 0  # the kind's format version; 0: the current one
    # record of the preset in use, see `under_preset`
    preset: JsonObject = field(default_factory=current_preset)
    # settings that differ from their defaults, by Python name, so that `update` can repeat the call
    call: JsonObject = field(default_factory=dict)
    # path of each input by setting, relative to the workspace
    sources: dict[str, str] = field(default_factory=dict)
    # supervision beyond tags, here or in an input: `tags and 5 corrected masks`; empty: tags alone
    supervision: str = ""

    def __post_init__(self) -> None:
        if not self.format:
            version = KINDS[self.kind].version if self.kind in KINDS else 1
            object.__setattr__(self, "format", version)

    @property
    def images(self) -> list[str]:
        """Files and folders that `predict` was given, relative to the workspace."""
        return ([self.sources["images"]] if "images" in self.sources
                else list(self.call.get("images", ())))

    @property
    def config_hash(self) -> str:
        """Hash of everything that determines the content; identity of a per-photo folder."""
        hashed = ("kind", "command", "options", "inputs", "model", "format")
        return identity_of_many({name: getattr(self, name) for name in hashed})

    def to_dict(self) -> JsonObject:
        """Return all fields, as stored in `artifact.json`."""
        content = asdict(self)
        if not self.supervision:
            del content["supervision"]
        return content

    def to_json(self) -> str:
        """Return the header as one line of JSON with sorted keys."""
        content = {name: value for name, value in self.to_dict().items()
                if value or name not in ("call", "sources")}
        return json.dumps(content, sort_keys=True, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str, where: Path | str) -> Header:
        """Read a header.

        Raises:
            VplError: the text is not a header, or a newer vpltool wrote it.
        """
        try:
            content = parse_json(text)
            check_fields(content, {"kind": TEXT, "command": TEXT}, _FIELDS)
            kind = content["kind"]
            check_fields(content.get("options", {}), _OF_FEATURES if kind == "features" else {},
                         # `align` has a numeric option `patches`.
                         _OPTIONS | ({"patches": TEXT} if kind == "features" else {}))
            check_fields(content.get("facts", {}), {},
                         _FACTS | ({"photos": TEXTS} if kind == "prototypes" else {}))
            if not content["command"].split():
                raise ValueError("`command` is empty")
            if not all(Path(source).parts for source in content.get("sources", {}).values()):
                raise ValueError("`sources` has an empty path")
            unknown = sorted(set(content) - {entry.name for entry in fields(cls)})
            if unknown:
                raise VplError(f"{where}: its header has `{unknown[0]}`, which this version "
                               f"does not know; vpltool {content.get('version', '?')} wrote it",
                               "pip install -U vpltool")
            if content.get("preset"):
                check_fields(content["preset"], PRESET)
            if content["command"] == "train-student" and isinstance(
                    given := content.get("options", {}).get("encoder"), str):
                # Older files hold its folder, too.
                content["options"]["encoder"] = without_folders(given)
            header = cls(**({"preset": {}} | content))
        except ValueError as error:
            raise VplError(f"{where}: its vpltool header cannot be read ({error})",
                           "recompute the file") from error
        newest = KINDS[header.kind].version if header.kind in KINDS else 0
        if header.format > newest:
            raise VplError(f"{where}: {header.kind} format {header.format}, made by vpltool "
                           f"{header.version}; this reads up to {newest}", "pip install -U vpltool")
        return header


def identity_of_many(parts: Mapping[str, object]) -> str:
    """Return a hash of named identities, independent of their order."""
    return identity_of_bytes(json.dumps(dict(parts), sort_keys=True).encode())


def join_supervision(parts: Iterable[str]) -> str:
    """Join the supervision of several inputs without duplicates; see `Header`."""
    return "; ".join(dict.fromkeys(filter(None, parts)))


def is_same_model(first: Mapping[str, str], second: Mapping[str, str]) -> bool:
    """Return whether two identities describe the same encoder."""
    return all(first.get(key) == second.get(key) for key in ("fingerprint", "normalise", "weights"))


def is_stale(expected: Header, found: Header) -> bool:
    """Return whether a file was made by the same command and options from other inputs."""
    same = ("kind", "command", "options", "format")
    return (all(getattr(expected, name) == getattr(found, name) for name in same)
            and expected.config_hash != found.config_hash)
