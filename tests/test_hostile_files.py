"""Every find of `make fuzz`: what a file held, and that it is refused in a line, or read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("webdataset")

from campaigns import fuzz, readers  # noqa: E402
from campaigns.readers import READERS  # noqa: E402

Change = Callable[[bytes], bytes]

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readers.make_world(tmp_path_factory.mktemp("hostile") / "world")


def put(*place: Any, value: Any) -> Change:
    """Put a value into a place of a JSON file; the first line of several counts."""
    def change(content: bytes) -> bytes:
        whole = content.decode()
        try:
            found, rest = json.loads(whole), ""
        except ValueError:
            first, _, rest = whole.partition("\n")
            found = json.loads(first)
        part = found
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        return json.dumps(found).encode() + (b"\n" + rest.encode() if rest else b"")

    return change


def instead(content: bytes) -> Change:
    """Another content altogether."""
    return lambda _: content


def behind(content: bytes) -> Change:
    """More behind it."""
    return lambda before: before + content


def swap(old: bytes, new: bytes) -> Change:
    """Something in the place of something else, which must be there."""
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new)

    return change


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the header of a .safetensors."""
    def changed(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        head = json.loads(content[8 : 8 + length])
        change(head)
        new = json.dumps(head).encode()
        return struct.pack("<Q", len(new)) + new + content[8 + length :]

    return changed


def own_header(*place: Any, value: Any) -> Change:
    """Change vpltool's header in a .safetensors."""
    def change(head: dict[str, Any]) -> None:
        said = head["__metadata__"]["vpltool"].encode()
        head["__metadata__"]["vpltool"] = put(*place, value=value)(said).decode()

    return tensors(change)


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def in_zip(name: str, change: Change) -> Change:
    """Change the members of a zip whose names end so."""
    def changed(content: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(
                out, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                inside = old.read(entry)
                new.writestr(entry.filename,
                             change(inside) if entry.filename.endswith(name) else inside)
        return out.getvalue()

    return changed


def circle() -> bytes:
    """The pickle of a module that holds itself: empty object, memoised, its own attribute."""
    return (b"\x80\x02c__torch__\nM\nq\x01)\x81q\x02}q\x03X\x01\x00\x00\x00aq\x04h\x02sb.")


def in_annotations(outline: object) -> Change:
    """Another outline for the first annotation; run lengths say that they fit its photo."""
    def change(content: bytes) -> bytes:
        whole = json.loads(content)
        entry = whole["annotations"][0]
        image = next(one for one in whole["images"] if one["id"] == entry["image_id"])
        size = {"size": [image["height"], image["width"]]}
        entry["segmentation"] = outline | size if isinstance(outline, dict) else outline
        return json.dumps(whole).encode()

    return change


def png(width: int, height: int, mode: int = 0) -> bytes:
    """A PNG of one colour, of any size: a few bytes for each row."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width * (3 if mode == 2 else 1))
    data = b"".join([packer.compress(row * 64) for _ in range(-(-height // 64))]
                    + [packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", data), (b"IEND", b"")))


class Runs:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        return (__import__("os").system, ("touch /tmp/outside",))


def legacy(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def chained(count: int) -> bytes:
    """A tar of so many headers that each extend the next one."""
    return b"".join(extended(b"12 path=abc\n") for _ in range(count)) + member(3)


def extended(records: bytes) -> bytes:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    return head.tobuf() + records.ljust(-(-len(records) // 512) * 512, b"\0")


def member(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member whose header says so many bytes, with 512 of them."""
    head = tarfile.TarInfo("0.jpg")
    head.type, head.size = kind, size
    return head.tobuf(tarfile.GNU_FORMAT) + bytes(512)


EXPANDS = (b'<!DOCTYPE a [<!ENTITY x "box"><!ENTITY y "&x;&x;&x;&x;">]>\n'
           b"<annotation><object><name>&y;</name></object></annotation>")
READS_A_FILE = (b'<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/hostname">]>\n'
                b"<annotation><object><name>&f;</name></object></annotation>")

FINDS: tuple[tuple[str, Change, str], ...] = (
    ("workspace", instead(DEEP), "nested too deeply"),
    ("workspace", put("classes", value=[1, 2]), "`classes` is not a list of texts"),
    ("workspace", put("classes", value="bar"), "`classes` is not a list of texts"),
    ("workspace", put("root", value=None), "`root` is not a text"),
    ("workspace", put("ignore", value="x"), "`ignore` is not a whole number"),
    ("workspace", put("mask_values", value=[1]), "`mask_values` is not an object"),
    ("images", put("id", value="../../outside"), "leads out of a folder"),
    ("images", put("id", value="/tmp/outside"), "leads out of a folder"),
    ("images", put("id", value="a/../../b"), "leads out of a folder"),
    ("images", put("id", value=""), "leads out of a folder"),
    ("images", put("id", value=7), "`id` is not a text"),
    ("images", put("image", value=None), "`image` is not a text"),
    ("images", put("labels", value=[["bar"]]), "`labels` is not a list of texts"),
    ("images", put("splits", value="train"), "`splits` is not a list of texts"),
    ("images", put("image", value="\ud800"), "`image` is not a text"),
    ("images", instead(b"7\n"), "it is not a JSON object"),
    ("images", instead(DEEP), "nested too deeply"),
    ("images", instead(b"\xff\n"), "not UTF-8"),
    ("changes", instead(DEEP), ""),
    ("changes", put("call", value=[1]), ""),
    ("changes", put("before", value="x"), ""),
    ("changes", put("after", "tags", value=3), ""),
    ("started recipe", instead(DEEP), "nested too deeply"),
    ("started recipe", put("words", value=7), "is not valid"),
    ("started recipe", put("words", value=["a\x1b[2Jb"]), "is not valid"),
    ("started recipe", put("words", value=[{"text": "a", "path": "b\0c"}]), "is not valid"),
    ("started recipe", put("words", value=[{"text": "a"}]), "is not valid"),
    ("started recipe", put("done", value="no"), "`done` is not"),
    ("completion", instead(b'{"id": 1, "splits": [["x"]]}\n'), ""),
    ("completion", instead(b"[]\n" + DEEP), ""),
    ("manifest", put("failed", value=[1]), "`failed` is not an object of texts"),
    ("manifest", put("own", value="x"), "`own` is not an object of texts"),
    ("manifest", put("header", value=[]), "`header` is not an object"),
    ("manifest", put("header", "kind", value=[1]), "`kind` is not a text"),
    ("manifest", put("header", "format", value="1"), "`format` is not a whole number"),
    ("manifest", put("header", "model", value={"name": 1}), "`model` is not an object of texts"),
    ("shard", instead(b"{"), "is damaged"),
    ("shard", instead(b"\xff"), "is damaged"),
    ("shard", instead(DEEP), "nested too deeply"),
    ("shard", put("shards", value=None), "`shards` is not a whole number"),
    ("shard", put("shard", value=9), "there is no shard 9 of 2"),
    ("shard", put("failed", value="x"), "`failed` is not an object of texts"),
    ("features", own_header("inputs", value=[1]), "`inputs` is not an object of texts"),
    ("features", own_header("command", value=None), "`command` is not a text"),
    ("features", own_header("preset", value={"name": 1}), "it has no `hash`"),
    ("prototypes", tensors(lambda head: head["__metadata__"].update(vpltool=[1])), "header"),
    ("prototypes", tensors(lambda head: head["prototypes"].update(data_offsets=[0, "x"])),
     "not a .safetensors file"),
    ("prototypes", tensors(lambda head: head["prototypes"].update(shape=[1 << 40, 1 << 40])), ""),
    ("checkpoint", own_header("facts", "checkpoint", value=None), "is not a checkpoint"),
    ("bundle", own_header("facts", "config", value={}), "does not hold the network"),
    ("bundle", own_header("facts", "config", value=7), "does not hold the network"),
    ("bundle", own_header("facts", "config", "rows", value=1 << 40), "does not hold the network"),
    ("bundle", own_header("facts", "tower", "width", value=1 << 40), "does not hold the tower"),
    ("bundle", own_header("facts", "tower", "blocks", value=[{}] * 5000), "hold the tower"),
    ("bundle", own_header("facts", "mean", value="x"), "does not hold the tower"),
    ("captions csv", instead(b",id,caption\nscene0\n"), "captions.csv:2 has no id"),
    ("captions json", instead(b'{"annotations": [[1]]}'), "is not a JSON object"),
    ("captions json", instead(b'{"annotations": ' + DEEP + b"}"), "nested too deeply"),
    ("captions json", put("annotations", 0, "caption", value=5), "`caption` is not a text"),
    ("coco", put("images", 0, "file_name", value=7), "`file_name` is not a text"),
    ("coco", put("categories", 0, "name", value=None), "`name` is not a text"),
    ("coco", put("images", 0, "id", value={}), "`id` is not a whole number"),
    ("coco", instead(b'{{"a": 1}: [1]}'), ""),
    ("voc xml", instead(EXPANDS), "a document type"),
    ("voc xml", instead(READS_A_FILE), "a document type"),
    ("voc xml", instead(b"<a>" * 100_000), "not XML"),
    ("voc xml", instead(b'<?xml version="1.0" encoding="none-such"?><a/>'), "not XML"),
    ("classes", instead(b"9" * 5000 + b" bar\n"), ""),
    ("tags", instead(b"id,labels," + b"x" * 200_000 + b"\nscene0,bar\n"), "cannot be read"),
    ("clip config", instead(b'{"model_cfg": {"embed_dim": 1, "vision_cfg": [], "text_cfg": 0}}'),
     "no model_cfg"),
    ("recipe", behind(b"\xff\n"), "not UTF-8"),
    ("recipe", behind(b"vpltool cam a\\ b\n"), "cannot be read"),
    ("recipe", behind(b"say a\x0bb\n"), ""),
    ("recipe", behind(b"if photos\n" * 2000 + b"end\n" * 2000), "nested too deeply"),
    ("comparison", swap(b"$split\nend\n", b"$split\n"), "never closed"),
    ("preset", instead(b"a = " + DEEP), "is not TOML"),
    ("torch weights", lambda _: zipped("x/data.pkl", b"\0" * (1 << 27)), "would expand"),
    ("legacy weights", instead(pickle.dumps(Runs())), "which are not loaded"),
    ("legacy weights", lambda _: legacy({"a": torch.ones(1).expand(1 << 20, 1 << 20)}),
     "more than the file holds"),
    ("legacy weights", instead(b"\x80\x02\x8e" + b"\xff" * 6 + b"\x7f\0" + b"x" * 50), ""),
    ("safetensors weights", tensors(lambda head: head.update(__metadata__=1e308)), "is damaged"),
    ("safetensors weights", tensors(
        lambda head: next(iter(head.values())).update(shape=[{}])), "is damaged"),
    ("openai archive", in_zip("data.pkl", lambda _: circle()), "twice"),
    ("openai archive", in_zip("data.pkl", lambda _: pickle.dumps(Runs(), 2)), "are not loaded"),
    ("openai archive", in_zip("data.pkl", lambda _: b"\x80\x02\x8e" + b"\xff" * 4 + b"\0" * 4
                              + b"abcd."), "expected 4294967295 bytes"),
    ("openai archive", in_zip("data.pkl", lambda _: b"\x80\x02Kar" + b"\xff" * 4 + b"."),
     "LONG_BINPUT 4294967295 is beyond its 10 bytes"),
    ("mask", instead(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt" + b"x" * 50), "cannot be read"),
    ("mask", lambda _: png(30_000, 20_000), "pixels"),
    ("photo png", lambda _: png(10_000, 10_000, 2), ""),
    ("photo png", instead(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), ""),
    ("tar", instead(b"not a tar" * 200), ""),
    ("tar", lambda _: chained(900), ""),
    ("tar", instead(member(1 << 50)), ""),
    ("tar", instead(extended(b"25 size=99999999999999999\n") + member(3)), ""),
    ("tar", instead(extended(b"24 GNU.sparse.map=0,5,x\n") + member(3)), ""),
    ("tar", instead(extended(b"99999999999999999999 a=b\n") + member(3)), ""),
    ("tar", lambda _: gzip.compress(member(1 << 33) + bytes(100 << 20)), ""),
    ("tar", lambda _: bz2.compress(member(1 << 33) + bytes(100 << 20)), ""),
    ("tar", lambda _: bz2.compress(member(1 << 33, tarfile.XHDTYPE) + bytes(1 << 16)), ""),
    ("tar", lambda _: lzma.compress(member(1 << 29, tarfile.GNUTYPE_LONGNAME) + bytes(1 << 16)),
     ""),
    ("packed index", instead(b"{"), "is damaged"),
    ("packed index", instead(DEEP), "nested too deeply"),
    ("packed index", put("tar", value="../0-of-1-000000.tar"), "neither a file beside it"),
    ("packed index", put("tar", value="/etc/passwd"), "neither a file beside it"),
    ("packed index", put("tar", value="filecache::s3://x/y.tar"), "neither a file beside it"),
    ("packed index", put("tar", value="file:///dev/zero"), "no such file"),
    ("packed index", put("tar", value="none.tar"), "no such file"),
    ("packed index", put("tar", value="nowhere://x/y.tar"), "cannot be read"),
    ("packed index", put("members", "scene0", value=[0, 1 << 61]), "is truncated"),
    ("packed index", put("members", "scene0", value=[512, 5]), "no bytes for scene0"),
    ("packed index", put("members", "scene0", value=[0, 100]), "is damaged"),
    ("packed index", put("members", "../../outside", value=[0, 1536]), "is damaged"),
    ("packed tar", lambda content: chained(900)[:1000] + content[1000:], "is damaged"),
    ("packed tar", lambda content: extended(b"99999999999999999999 a=b\n") + content[1024:],
     "is damaged"),
    ("packed tar", lambda content: member(1 << 40) + content[1024:], "is damaged"),
    ("packed tar", instead(b""), "is truncated"),
    ("packed tar", lambda content: content[:2000], "is truncated"),
    ("packed tar", swap(b"scene0.safetensors", b"scene1.safetensors"), "is damaged"),
    ("packed tar", lambda content: content[:156] + b"2" + content[157:], "is damaged"),
    ("packed tar", lambda content: content[:156] + b"S" + content[157:], "is damaged"),
    ("label studio", instead(b"[1]"), "not as Label Studio writes it"),
    ("label studio", instead(json.dumps([{"data": {"photo": "scene0"}, "annotations": [{"result": [
        {"original_width": 48, "original_height": 40, "type": "brushlabels", "value": {
            "brushlabels": ["bar"], "rle": [1 << 40]}}]}]}]).encode()), "out of bounds"),
    ("instances", in_annotations({"counts": "11111111111"}), "do not add up"),
    ("instances", in_annotations({"counts": [1 << 40, 5]}), "do not add up"),
    ("instances", in_annotations({"counts": "~~~~"}), "are damaged"),
    ("instances", in_annotations([[0, 0, 1e300, 5, 7, 1e300]]), "within the photo"),
    ("cvat", instead(EXPANDS.replace(b"annotation>", b"annotations>")), "a document type"),
    ("cvat zip", lambda _: zipped("annotations.xml", b" " * (1 << 29)), "bytes"),
    ("yolo names", instead(b"names: &a [x, x]\nb: *a\n"), "aliases are not allowed"),
    ("yolo names", swap(b"names:", b"names: [x]\nother:"), ""),
    ("mmseg", instead(b"(" * 100_000), "not Python"),
    ("mmseg", instead(b"a\0b"), "not Python"),
    ("imagefolder", put("mask_file_name", value="../../outside.png"), "leads out of it"),
    ("imagefolder", put("mask_file_name", value=None), "`mask_file_name` is not a text"),
    ("export mark", instead(b'{"files": [1]}'), "holds files that vpltool did not make"),
)
"""Reader, what is done to its file, and what is said; nothing, where it is read or left out.

What takes time to make is made in its test: the table is read in each process of a run.
"""


@pytest.mark.parametrize(("name", "change", "said"), FINDS, ids=[
    f"{number}-{name}" for number, (name, _, _) in enumerate(FINDS)])
def test_a_find_of_the_campaign(name: str, change: Change, said: str, work: Path) -> None:
    reader = next(reader for reader in READERS if reader.name == name)
    path = work / reader.place
    before = path.read_bytes() if path.exists() else None
    told: list[str] = []

    def read(base: Path) -> None:
        try:
            reader.read(base)
        except Exception as error:
            told.append(str(error))
            raise

    try:
        path.write_bytes(change(before or b""))
        found, trace = fuzz.find_in(read, work)
        assert not found, trace
        assert said in "".join(told), told
        assert told or not said
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    from vpltool.datasets.webdataset import read_tar

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("0.jpg")
            member.type, member.linkname = kind, "/etc/hostname"
            tar.addfile(member)
    assert not list(read_tar(str(tmp_path / "a.tar")))


def test_what_was_made_endless_is_a_flaw(tmp_path: Path) -> None:
    """And a tar of many small pairs that compress well is none."""
    from vpltool.datasets.webdataset import Pair, read_tar

    cases = {"deep.tar": (chained(900), "recursion"), "long.tar": (member(1 << 50), "ends within"),
             "bomb.tar.gz": (gzip.compress(member(1 << 33) + bytes(100 << 20)), "unfolds"),
             "name.tar.bz2": (bz2.compress(member(1 << 33, tarfile.XHDTYPE)), "a name of")}
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        found = list(read_tar(str(tmp_path / name)))
        # Some Pythons refuse the name themselves, as an empty header.
        assert any(said in flaw.where or flaw.where.endswith("(empty header)")
                   for flaw in found if not isinstance(flaw, Pair)), found
    with tarfile.open(tmp_path / "whole.tar.xz", "w:xz") as tar:
        for number in range(300):
            for suffix, text in (("jpg", b"photo"), ("txt", b"a dog")):
                entry = tarfile.TarInfo(f"{number}.{suffix}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
    assert [type(pair) for pair in read_tar(str(tmp_path / "whole.tar.xz"))] == [Pair] * 300


def test_a_name_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from vpltool import console

    console.error("no class `\x1b[2J\x07`", "\x9b2J")
    assert not {"\x1b", "\x07", "\x9b"} & set(capsys.readouterr().err)
