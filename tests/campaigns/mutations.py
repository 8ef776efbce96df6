"""Mutations of files that know their form, so that what is wrong is deep inside a valid file."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

DEEP = "@deep@"
"""Stands for an array in an array, a hundred thousand times."""

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 7, 1 << 40, 1 << 63, -(1 << 70), 0.5, 1e308, float("nan"), float("inf"),
    "", "a", "../../outside", "/tmp/outside", "a\0b", "a\nb", "\x1b[2J", "\ud800", "é" * 300,
    "x" * 70_000, "`phi=0.4`", "`(((((((((`", "{}", "9" * 5000, [], [[]], [1], ["../x"], [None], {},
    {"a": 1}, {"": {}}, DEEP)
"""Values that a file may hold in any place."""

_MAGIC = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\n", b'"',
          b",", b";", b"../", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"{", b"[", b"-1", b"1e999",
          b"9" * 5000, b"$", b"\\", b"'", b"\t", b"=", b"]")


def dumped(value: Any) -> bytes:
    """Return JSON, with what no Python object can be."""
    text = json.dumps(value)
    return text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def mutate_bytes(content: bytes, chance: Random) -> bytes:
    """Change, insert, delete, double or cut off some bytes."""
    out = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(out) + 1)
        length = chance.choice((1, 1, 2, 4, 8, 32, 200))
        kind = chance.randrange(6)
        if kind == 0:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            out[at:at] = chance.choice(_MAGIC)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length] * chance.choice((1, 1, 2, 50))
        elif kind == 4:
            magic = chance.choice(_MAGIC)
            out[at : at + len(magic)] = magic
        elif chance.random() < 0.3:
            del out[at:]
    return bytes(out[: 1 << 20])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON value with each of its keys or indices."""
    entries = (value.items() if isinstance(value, dict)
               else enumerate(value) if isinstance(value, list) else ())
    for key, part in entries:
        yield value, key
        yield from _places(part)


def mutate_value(value: Any, chance: Random) -> Any:
    """Replace, delete, rename or double a part of a JSON value; the value itself is changed."""
    places = list(_places(value))
    if not places or chance.random() < 0.02:
        return chance.choice(ODD)
    parent, key = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[chance.choice(("", "x", "a\0b", "../x", str(key) * 2))] = parent.pop(key)
    elif kind == 2:
        donor, other = chance.choice(places)
        parent[key] = json.loads(json.dumps(donor[other]))
    elif kind == 3 and isinstance(parent, list):
        parent.extend(parent[key : key + 1] * chance.choice((1, 300)))
    else:
        parent[key] = chance.choice(ODD)
    return value


def mutate_json(content: bytes, chance: Random) -> bytes:
    """Mutate the value that a JSON file holds."""
    try:
        value = json.loads(content)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            value = mutate_value(value, chance)
        return dumped(value)
    except (ValueError, RecursionError):
        return mutate_bytes(content, chance)


def mutate_lines(content: bytes, chance: Random, inside: Mutation = mutate_bytes) -> bytes:
    """Mutate a line of a text, or delete, double or swap lines."""
    lines = content.split(b"\n")
    at = chance.randrange(len(lines))
    kind = chance.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines[at:at] = [lines[at]] * chance.choice((1, 1, 300))
    elif kind == 2:
        other = chance.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = inside(lines[at], chance)
    return b"\n".join(lines)


def mutate_json_lines(content: bytes, chance: Random) -> bytes:
    """Mutate a file with a JSON value a line."""
    return mutate_lines(content, chance, mutate_json)


_DOCTYPE = (b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">'
            b'<!ENTITY f SYSTEM "file:///etc/passwd">]>')


def mutate_xml(content: bytes, chance: Random) -> bytes:
    """Mutate XML: a document type, entities, elements within elements, or bytes."""
    kind = chance.randrange(8)
    if kind == 0:
        head, mark, rest = content.partition(b"?>")
        return (head + mark + _DOCTYPE + rest if mark else _DOCTYPE + content).replace(
            b">", b">&y;&f;", chance.randrange(20))
    if kind == 1:
        at = content.find(b">", chance.randrange(len(content) or 1)) + 1
        depth = chance.choice((10, 100_000))
        return content[:at] + b"<a>" * depth + b"</a>" * depth + content[at:]
    if kind == 2:
        first = content.find(b'"', chance.randrange(len(content) or 1)) + 1
        odd = str(chance.choice(ODD))[:70_000].encode("utf-8", "replace").replace(b"\0", b"0")
        return content[:first] + odd + content[content.find(b'"', first):]
    return mutate_bytes(content, chance)


def mutate_safetensors(content: bytes, chance: Random) -> bytes:
    """Mutate the header of a .safetensors, or the header within it, keeping the length right."""
    length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    try:
        head = json.loads(content[8 : 8 + length])
        if chance.random() < 0.5 and "vpltool" in head.get("__metadata__", {}):
            own = mutate_json(head["__metadata__"]["vpltool"].encode(), chance)
            head["__metadata__"]["vpltool"] = own.decode("utf-8", "replace")
            changed = json.dumps(head).encode()
        else:
            changed = mutate_json(content[8 : 8 + length], chance)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return mutate_bytes(content, chance)
    if chance.random() < 0.1:
        return mutate_bytes(content, chance)
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


_OPCODES = (
    b"cos\nsystem\n(S'touch /tmp/outside'\ntR", b"cbuiltins\neval\n(S'1'\ntR", b"(lp0\n", b"]\x94",
    b"h\0", b"R", b"b", b"\x81", b"\x93", b"Q", b"0", b"1", b"2", b"}", b"N", b"K\x01", b"(", b"t",
    b"\x8a\xff", b"\x8e" + b"\xff\xff\xff\x7f" + b"\0" * 4, b"X\xff\xff\xff\x7f", b"\x85", b"e",
    b"\x95" + b"\xff" * 8, b"J\xff\xff\xff\x7f", b"s", b"u", b"a", b"q\x01", b".")


def mutate_pickle(content: bytes, chance: Random) -> bytes:
    """Mutate a pickle: its operations, or its bytes."""
    if chance.random() < 0.4:
        return mutate_bytes(content, chance)
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.choice(_OPCODES) + content[at + chance.choice((0, 0, 1, 2)):]


def mutate_zip(content: bytes, chance: Random) -> bytes:
    """Mutate a member of a zip: a pickle or XML as such; or rename it, or the zip's bytes."""
    if chance.random() < 0.3:
        return mutate_bytes(content, chance)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError,
            RuntimeError):
        members = []
    if not members:
        return mutate_bytes(content, chance)
    heavy = [at for at, (name, _) in enumerate(members) if name.endswith((".pkl", ".xml"))]
    at = chance.choice(heavy) if heavy and chance.random() < 0.8 else chance.randrange(len(members))
    name, inside = members[at]
    if chance.random() < 0.1:
        name = chance.choice(("../outside", "", name * 2, "/tmp/outside"))
    else:
        inside = (mutate_xml if name.endswith(".xml") else mutate_pickle)(inside, chance)
    members[at] = (name, inside)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inside in members:
            archive.writestr(zipfile.ZipInfo(name), inside)
    return out.getvalue()


def mutate_png(content: bytes, chance: Random) -> bytes:
    """Mutate a chunk of a PNG, with a right checksum, or its bytes."""
    if chance.random() < 0.2 or len(content) < 33:
        return mutate_bytes(content, chance)
    chunks, at = [], 8
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        chunks.append([kind, content[at + 8 : at + 8 + length]])
        at += 12 + length
    chosen = chance.choice(chunks)
    kind = chance.randrange(5)
    if kind == 0:
        chosen[1] = mutate_bytes(chosen[1], chance)
    elif kind == 1:
        chunks[0][1] = struct.pack(
            ">II", *(chance.choice((0, 1, 5, 3000, 30_000, 1 << 20, 1 << 31)) for _ in "wh")
        ) + chunks[0][1][8:]
    elif kind == 2:
        chosen[0] = chance.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"PLTE", b"tRNS", b"acTL"))
    elif kind == 3:
        chunks.insert(chance.randrange(len(chunks)), list(chance.choice(chunks)))
    else:
        chunks[0][1] = chunks[0][1][:8] + bytes(
            chance.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5))
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in map(tuple, chunks))


_TYPES = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE,
          tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
_NAMES = ("../../outside.jpg", "/tmp/outside.jpg", "a" * 300, "é.txt", ".jpg", "a.b.c.jpg",
          "x/../../y.png", "a.json")


def mutate_tar(content: bytes, chance: Random) -> bytes:
    """Mutate a member of a tar, or its bytes."""
    if chance.random() < 0.4:
        return mutate_bytes(content, chance)
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = [(entry, (archive.extractfile(entry) or io.BytesIO()).read())
                       for entry in archive if entry.isreg()]
        entry, inside = chance.choice(members)
        kind = chance.randrange(5)
        if kind == 0:
            entry.name = chance.choice(_NAMES)
        elif kind == 1:
            entry.type = chance.choice(_TYPES)
            entry.linkname = "/etc/passwd"
        else:
            changed = mutate_json if entry.name.endswith(".json") else mutate_bytes
            members[members.index((entry, inside))] = (entry, changed(inside, chance))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for entry, inside in members:
                entry.size = len(inside)
                archive.addfile(entry, io.BytesIO(inside))
    except (tarfile.TarError, ValueError, IndexError, OSError, OverflowError):
        return mutate_bytes(content, chance)
    return out.getvalue()


FORMS: dict[str, Mutation] = {
    "bytes": mutate_bytes, "json": mutate_json, "json lines": mutate_json_lines,
    "lines": mutate_lines, "xml": mutate_xml, "safetensors": mutate_safetensors,
    "pickle": mutate_pickle, "zip": mutate_zip, "png": mutate_png, "tar": mutate_tar}
"""Form of a file to its mutation."""
