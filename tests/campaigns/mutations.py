"""Mutations of files that know their form, so that what is wrong is deep inside a valid file."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
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


_EXTENDING = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
_RECORDS = (b"12 path=abc\n", b"25 size=99999999999999999\n", b"24 GNU.sparse.map=0,5,x\n",
            b"99999999999999999999 a=b\n", b"0 a=b\n", b"name\0")


def _tar_header(kind: bytes, size: int) -> bytes:
    header = tarfile.TarInfo("0001.jpg")
    header.type, header.size = kind, size
    return header.tobuf(tarfile.GNU_FORMAT)


def _odd_tar(content: bytes, chance: Random) -> bytes:
    """Put headers before a tar that extend it or say too much, or compress it."""
    kind = chance.randrange(3)
    if kind == 0:
        return chance.choice((gzip.compress, bz2.compress, lzma.compress))(content)
    if kind == 1:
        records = chance.choice(_RECORDS)
        return (_tar_header(chance.choice(_EXTENDING), len(records)) + records.ljust(512, b"\0")
                ) * chance.choice((1, 2, 900)) + content
    return _tar_header(chance.choice((tarfile.REGTYPE, *_EXTENDING)),
                       1 << chance.randrange(62)) + content


def mutate_tar(content: bytes, chance: Random) -> bytes:
    """Mutate a member of a tar, its headers, or its bytes."""
    if chance.random() < 0.4:
        return mutate_bytes(content, chance)
    if chance.random() < 0.2:
        return _odd_tar(content, chance)
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


_COMMANDS = ("train-groups", "prepare webdataset", "prepare folder", "demo", "run", "export",
             "pull", "push", "extract", "cam", "refine", "crf", "predict", "text-prototypes",
             "seed-prototypes", "learn-prototypes", "shift-gap", "train-decoder", "eval", "ray",
             "report", "", " ", "no-such-command")
_PATHS = ("/tmp/outside", "../outside", "../../outside/x", "../work2", ".", "..", "", "/",
          "prototypes/text.safetensors", "cams/text/train", "prototypes", "/etc/passwd", "a\0b",
          "x" * 300, "pipe:touch /tmp/outside", "file:///etc/passwd", "prototypes/new.safetensors")
_SETTINGS = ("out", "overwrite", "update", "pairs", "tars", "val", "method", "name", "words",
             "prompts", "split", "features", "prototypes", "cams", "what", "masks", "decoder",
             "second", "classes", "attributes", "images", "limit", "begin", "start", "keep",
             "encoder", "allow_pipe", "seed", "phi", "threshold", "scales", "preset", "to")
_VALUES = (True, False, 0, 1, -1, 3, 0.5, 1e308, None, "text", "train", "vision", "gradcam",
           "dense", "all", [], ["x"], {}, *_PATHS, list(_PATHS[:2]), ["pipe:touch /tmp/outside"])


def hostile_header(header: Any, chance: Random) -> Any:
    """Let a header say what it should not: another command, settings, inputs."""
    if not isinstance(header, dict):
        return header
    for _ in range(chance.choice((1, 1, 2, 4))):
        field = chance.choice(("call", "call", "call", "sources", "inputs", "options", "command",
                               "kind", "model"))
        if field in ("command", "kind"):
            header[field] = chance.choice(
                _COMMANDS if field == "command" else ("prototypes", "masks", "cams", "bundle"))
            continue
        part = header.setdefault(field, {})
        if isinstance(part, dict):
            part[chance.choice((*_SETTINGS, *part))] = chance.choice(
                _PATHS if field in ("sources", "inputs") else _VALUES)
    return header


def mutate_header_json(content: bytes, chance: Random) -> bytes:
    """Mutate a manifest: its header, or any other part."""
    try:
        value = json.loads(content)
        if chance.random() < 0.5 and "header" in value:
            value["header"] = hostile_header(value["header"], chance)
            return dumped(value)
    except (ValueError, RecursionError, TypeError):
        pass
    return mutate_json(content, chance)


def _mutate_call(content: bytes, chance: Random) -> bytes:
    try:
        value = json.loads(content)
        if chance.random() < 0.4 and isinstance(value.get("call"), dict):
            value["call"][chance.choice((*_SETTINGS, *value["call"]))] = chance.choice(_VALUES)
            return dumped(value)
    except (ValueError, RecursionError, AttributeError):
        pass
    return mutate_json(content, chance)


def mutate_call_lines(content: bytes, chance: Random) -> bytes:
    """Mutate a line of JSON, or the call in it."""
    return mutate_lines(content, chance, _mutate_call)


_NUMBERS = {
    "F16": (b"\0~", b"\0|", b"\0\xfc", b"\xff{", b"\0\0", b"\0\xbc", b"\x01\0"),
    "F32": tuple(struct.pack("<f", value) for value in (
        float("nan"), float("inf"), float("-inf"), 3e38, 0.0, -1.0, 1e-42)),
    "I64": tuple(struct.pack("<q", value) for value in (
        -1, 0, 1, 2, 3, 4, 99, 254, 255, 256, 1 << 31, (1 << 63) - 1, -(1 << 63)))}


def _numbers(entry: Any, data: bytearray, chance: Random) -> None:
    """Put odd numbers into a tensor: one, a run, or all."""
    first, end = entry["data_offsets"]
    odd = chance.choice(_NUMBERS[entry["dtype"]])
    # Another mutation may have made the offsets odd: then as much as there is.
    count = max((min(end, len(data)) - first) // len(odd), 1)
    start = chance.randrange(count)
    length = chance.choice((1, 1, 5, count))
    start = 0 if length == count else start
    length = min(length, count - start)
    data[first + start * len(odd) : first + (start + length) * len(odd)] = odd * length


def _shape(entry: Any, chance: Random) -> None:
    """Give a tensor another shape, of the same number of elements."""
    shape = list(entry["shape"])
    kind = chance.randrange(4)
    if kind == 0:
        chance.shuffle(shape)
    elif kind == 1:
        shape.insert(chance.randrange(len(shape) + 1), 1)
    elif kind == 2 and len(shape) > 1:
        shape[:2] = [shape[0] * shape[1]]
    elif shape and shape[0] % 2 == 0:
        shape[:1] = [shape[0] // 2, 2]
    entry["shape"] = shape


def _shorter(head: Any, entry: Any, data: bytearray, chance: Random) -> None:
    """Cut the first axis of a tensor, to nothing at times."""
    first, end = entry["data_offsets"]
    shape = entry["shape"]
    if not shape or not shape[0]:
        return
    keep = chance.choice((0, 1, shape[0] - 1))
    row = (end - first) // shape[0]
    gone = (shape[0] - keep) * row
    del data[first + keep * row : end]
    shape[0] = keep
    for other in head.values():
        offsets = other.get("data_offsets")
        if offsets and offsets[0] >= end:
            offsets[:] = [offset - gone for offset in offsets]
    entry["data_offsets"] = [first, end - gone]


def mutate_tensors(content: bytes, chance: Random) -> bytes:
    """Mutate a .safetensors: numbers, shapes, its header, the header within it, its length."""
    kind = chance.random()
    if kind < 0.2:
        return mutate_safetensors(content, chance)
    if kind < 0.28:
        whole = chance.choice((0, 8, len(content) // 2, len(content) - 1))
        return content[:whole] + b"\0" * chance.choice((0, len(content) - whole))
    try:
        length = struct.unpack("<Q", content[:8])[0]
        head, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
        if kind < 0.45:
            meta = head["__metadata__"]
            meta["vpltool"] = json.dumps(hostile_header(json.loads(meta["vpltool"]), chance))
        else:
            names = [name for name in head if name != "__metadata__"]
            for _ in range(chance.choice((1, 1, 2))):
                entry = head[chance.choice(names)]
                if kind < 0.8:
                    _numbers(entry, data, chance)
                elif kind < 0.9:
                    _shape(entry, chance)
                else:
                    _shorter(head, entry, data, chance)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error,
            RecursionError):
        return mutate_bytes(content, chance)
    changed = json.dumps(head).encode()
    return struct.pack("<Q", len(changed)) + changed + bytes(data)


_PRESET_LINES = (b'out = "/tmp/outside"', b"overwrite = true",
                 b'pairs = ["pipe:touch /tmp/outside"]',
                 b'split = "../../x"', b'name = "../../x"', b"[pack]", b'to = "/tmp/outside"',
                 b'features = "/tmp"', b'prototypes = "../outside"', b"[update]", b"[run]",
                 b'recipe = "x"', b"phi = nan", b"phi = inf", b"seed = -1", b'method = "../x"',
                 b"allow-pipe = true", b"limit = 1", b'keep = "x"', b"[extract]", b"[ray]")
_RECIPE_LINES = (
    b"vpltool prepare webdataset 'pipe:touch /tmp/outside' --allow-pipe",
    b"vpltool train-groups --pairs 'pipe:touch /tmp/outside'", b"vpltool cam --name ../../../x",
    b"vpltool $(touch /tmp/outside)", b"vpltool cam; touch /tmp/outside", b"each a in $name",
    b"touch /tmp/outside", b"vpltool update", b"vpltool status --json", b"end", b"unless name",
    b"vpltool seed-prototypes --phi nan", b"name = ?", b"seeds = $name", b"say $work",
    b"[--x $name]")


def _with_lines(more: tuple[bytes, ...]) -> Mutation:
    def mutate(content: bytes, chance: Random) -> bytes:
        if chance.random() < 0.5:
            return mutate_lines(content, chance)
        lines = content.split(b"\n")
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(more))
        return b"\n".join(lines)

    return mutate


FORMS: dict[str, Mutation] = {
    "bytes": mutate_bytes, "json": mutate_json, "json lines": mutate_json_lines,
    "lines": mutate_lines, "xml": mutate_xml, "safetensors": mutate_safetensors,
    "pickle": mutate_pickle, "zip": mutate_zip, "png": mutate_png, "tar": mutate_tar,
    "tensors": mutate_tensors, "header json": mutate_header_json, "call lines": mutate_call_lines,
    "preset": _with_lines(_PRESET_LINES), "recipe": _with_lines(_RECIPE_LINES)}
"""Form of a file to its mutation."""
