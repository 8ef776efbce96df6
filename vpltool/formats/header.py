"""Provenance: the header that every file carries, and the hash that decides about resuming."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vpltool import __version__
from vpltool.errors import VplError
from vpltool.formats.kinds import KINDS

METADATA_KEY = "vpltool"
"""Key under which a .safetensors' metadata and a PNG's text carry the header, as JSON."""

_preset: dict[str, Any] = {}


def set_preset(name: str = "", identity: str = "", given: dict[str, Any] | None = None) -> None:
    """Say which preset the options of this run come from; every header written says so too.

    Args:
        name: its name; empty: none, all options are given by hand.
        identity: hash of what it sets.
        given: options that were given another value by hand.
    """
    _preset.clear()
    if name:
        _preset.update(name=name, hash=identity, given=given or {})


def current_preset() -> dict[str, Any]:
    """What `set_preset` was told: `name`, `hash`, `given`; empty if nothing."""
    return dict(_preset)


def spell_preset(preset: dict[str, Any]) -> str:
    """Spell a preset's record for people: `vpl-voc (0123…), but lambda 0.9`."""
    if not preset:
        return "no preset"
    given = ", ".join(f"{option} {value}" for option, value in preset["given"].items())
    return f"{preset['name']} ({preset['hash']})" + (f", but {given}" if given else "")


@dataclass(frozen=True)
class Header:
    """What a file is, what made it, and from what.

    No date, host or absolute path: the same run gives the same bytes.

    Args:
        kind: name of the kind of file.
        command: the command that made it, `learn-prototypes`.
        options: its options, those that change the result.
        inputs: role to identity of each input (a hash, see `identity_of_file` and `config_hash`).
        model: identity of the CLIP: `name`, `pretrained`, `fingerprint`; empty if none took part.
        facts: results worth keeping beside the data (objective, gap, row names …); not hashed.
        version: vpltool's version; not hashed, so that an update does not undo all work.
        format: the kind's format version; 0: today's.
        preset: the preset that the options come from, see `set_preset`; not hashed, since the
            same options given by hand make the same file.
    """

    kind: str
    command: str
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    model: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    format: int = 0
    preset: dict[str, Any] = field(default_factory=current_preset)

    def __post_init__(self) -> None:
        if not self.format:
            version = KINDS[self.kind].version if self.kind in KINDS else 1
            object.__setattr__(self, "format", version)

    @property
    def config_hash(self) -> str:
        """Hash of all that determines the content: the identity of a folder of per-photo files."""
        hashed = asdict(self)
        del hashed["facts"], hashed["version"], hashed["preset"]
        return _short_hash(json.dumps(hashed, sort_keys=True).encode())

    def to_json(self) -> str:
        """Spell the header as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str, where: Path) -> Header:
        """Read a header.

        Raises:
            VplError: it is not one, or a newer vpltool wrote it.
        """
        try:
            header = cls(**({"preset": {}} | json.loads(text)))
        except (ValueError, TypeError) as error:
            raise VplError(f"{where}: its vpltool header cannot be read ({error})",
                           "make the file again") from error
        newest = KINDS[header.kind].version if header.kind in KINDS else 0
        if header.format > newest:
            raise VplError(f"{where}: {header.kind} format {header.format}, made by vpltool "
                           f"{header.version}; this one reads {newest}", "pip install -U vpltool")
        return header


def identity_of_file(path: Path) -> str:
    """Hash a file's content (16 hex digits of SHA-256)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def identity_of_many(parts: dict[str, str]) -> str:
    """Hash a set of named identities, whatever their order."""
    return _short_hash(json.dumps(parts, sort_keys=True).encode())


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def difference(asked: Header, found: Header) -> str:
    """Say in a few words what sets two configurations apart, for the message of a refusal."""
    said = []
    for part in ("command", "format", "options", "inputs", "model"):
        new, old = getattr(asked, part), getattr(found, part)
        if isinstance(new, dict) and isinstance(old, dict):
            for key in sorted(set(new) | set(old)):
                if new.get(key) != old.get(key):
                    said.append(f"{key} was {_brief(old.get(key))}, now {_brief(new.get(key))}")
        elif new != old:
            said.append(f"{part} was {old}, now {new}")
    return "; ".join(said[:3]) + ("; …" if len(said) > 3 else "")


def _brief(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
