"""Photo-caption pairs from WebDataset tars; whatever is wrong is named, and reading goes on."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vpltool.datasets.webdataset import Flaw, Flaws, Pair, find_tars, read_tar
from vpltool.errors import VplError
from vpltool.stages._pairs import Cursor, stream_pairs

wds = pytest.importorskip("webdataset")


def write_tar(path: Path, files: Mapping[str, bytes | str], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def photo_of(number: int) -> bytes:
    return bytes([number % 256]) * (700 + 13 * number)


def numbered(count: int, first: int = 0) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for number in range(first, first + count):
        files |= {f"{number:04}.jpg": photo_of(number), f"{number:04}.txt": f"photo {number}"}
    return files


def pairs_of(path: Path) -> list[Pair]:
    found = list(read_tar(str(path)))
    assert not [flaw for flaw in found if isinstance(flaw, Flaw)]
    return [pair for pair in found if isinstance(pair, Pair)]


def flaws_of(found: Sequence[Pair | Flaw]) -> list[tuple[str, str]]:
    return [(flaw.what, flaw.where) for flaw in found if isinstance(flaw, Flaw)]


def keys_of(found: Sequence[Pair | Flaw]) -> list[str]:
    return [pair.key for pair in found if isinstance(pair, Pair)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_what_the_library_writes_is_read(tmp_path: Path, mode: str) -> None:
    """`webdataset`'s own writer, json and cls among the files; and any compression."""
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as writer:
        writer.write({"__key__": "train/0", "jpg": b"photo", "txt": "one cat\n two  cats\n",
                      "json": {"captions": ["a cat", "one cat"], "labels": ["cat", "sofa"]}})
        writer.write({"__key__": "train/1", "png": b"picture", "cls": 3, "seg.png": b"a mask",
                      "json": {"caption": "a dog", "tags": "dog"}})
        writer.write({"__key__": "train/2", "WEBP": b"other"})
    if mode != "w":
        with tarfile.open(path) as tar, tarfile.open(tmp_path / "b", mode) as packed:  # type: ignore[call-overload]
            for member in tar:
                packed.addfile(member, tar.extractfile(member))
        path = tmp_path / "b"
    assert pairs_of(path) == [
        Pair(str(path), "train/0", "jpg", b"photo", ("one cat", "two cats", "a cat"),
             ("cat", "sofa")),
        Pair(str(path), "train/1", "png", b"picture", ("a dog",), ("dog", "3")),
        Pair(str(path), "train/2", "webp", b"other")]


def test_what_lacks_or_is_no_text_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {
        "0.jpg": b"p", "0.txt": "zero", "1.txt": "no photo", "2.jpg": b"p", "2.txt": " \n",
        "3.jpg": b"p", "3.json": "{", "3.txt": "three", "4.jpg": b"p", "4.txt": b"\xff\xfe4",
        "5.jpg": b"p", "5.json": "[1]", "6.json": '{"width": 3}', "README.md": "?", "7.jpg": b"p",
        "7.txt": "seven"})
    found = list(read_tar(str(path)))
    assert keys_of(found) == ["0", "2", "3", "4", "5", "7"]
    no_text = "descriptions that are no UTF-8 or no JSON"
    assert flaws_of(found) == [
        ("captions without a photo", f"{path}: 1"), ("empty captions", f"{path}: 2"),
        (no_text, f"{path}: 3"), (no_text, f"{path}: 4"), (no_text, f"{path}: 5")]
    assert Pair(str(path), "3", "jpg", b"p", ("three",)) in found


def test_links_and_other_files_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not for a caption")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("0.txt")
            member.type, member.linkname = kind, str(secret)
            tar.addfile(member)
        member = tarfile.TarInfo("0.jpg")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"p"))
    assert pairs_of(path) == [Pair(str(path), "0", "jpg", b"p")]


def damage(path: Path, name: str, place: int = 120) -> int:
    """Spoil the header of a member; return its offset."""
    with tarfile.open(path) as tar:
        offset = tar.getmember(name).offset
    content = bytearray(path.read_bytes())
    content[offset + place] ^= 0xFF
    path.write_bytes(content)
    return offset


def test_behind_a_damaged_header_reading_goes_on(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", numbered(6))
    offset = damage(path, "0002.jpg")
    found = list(read_tar(str(path)))
    assert keys_of(found) == ["0000", "0001", "0003", "0004", "0005"]
    assert flaws_of(found) == [
        ("damaged places", f"{path}, byte {offset} (bad checksum)"),
        ("captions without a photo", f"{path}: 0002")]
    # The library alone ends there, and says nothing.
    with path.open("rb") as file:
        assert len(list(wds.tariterators.tar_file_iterator(file))) == 4


@pytest.mark.parametrize(("cut", "keys", "said"), [
    ("in a photo", 3, "0003.jpg (unexpected end of data)"),
    ("in a header", 3, "truncated header"),
    ("between files", 3, "it has no end; files may be missing"),
    ("behind all", 6, "it has no end; files may be missing"),
])
def test_a_tar_that_was_cut_off(tmp_path: Path, cut: str, keys: int, said: str) -> None:
    path = write_tar(tmp_path / "a.tar", numbered(6))
    with tarfile.open(path) as tar:
        third, last = tar.getmember("0003.jpg"), tar.getmember("0005.txt")
    length = {"in a photo": third.offset_data + 100, "in a header": third.offset + 100,
              "between files": third.offset, "behind all": last.offset_data + 512}[cut]
    path.write_bytes(path.read_bytes()[:length])
    found = list(read_tar(str(path)))
    assert len(keys_of(found)) == keys
    (what, where), = flaws_of(found)
    assert what == "damaged places"
    assert str(path) in where
    assert said in where


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 no tar at all" * 100,
                                     gzip.compress(b"no tar" * 99), b"\x1f\x8b torn gzip"],
                         ids=["empty", "a photo", "gzip", "torn gzip"])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    found = list(read_tar(str(path)))
    assert keys_of(found) == []
    assert all(str(path) in where for _, where in flaws_of(found))
    assert len(found) in (1, 2)


def test_a_torn_gzip_gives_what_is_before_the_tear(tmp_path: Path) -> None:
    import random

    chance = random.Random(0)
    path = write_tar(tmp_path / "a.tar.gz", {f"{number}.jpg": chance.randbytes(20_000)
                                             for number in range(9)}, "w:gz")
    path.write_bytes(path.read_bytes()[:100_000])
    found = list(read_tar(str(path)))
    assert 1 <= len(keys_of(found)) < 9
    assert len(flaws_of(found)) == 1


def test_a_missing_tar_does_not_end_the_stream(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", numbered(2))
    stream = stream_pairs([str(tmp_path / "gone.tar"), str(whole)], seed=0)
    found = [pair for pair, _ in islice(stream, 3)]
    assert sorted(keys_of(found)) == ["0000", "0001"]
    assert ("tars that cannot be read",
            f"{tmp_path / 'gone.tar'} (No such file or directory)") in flaws_of(found)


def test_a_file_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for content in (b"one", b"two", b"3"):
            member = tarfile.TarInfo("0.jpg" if content != b"3" else "1.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = list(read_tar(str(path)))
    assert [pair.photo for pair in found if isinstance(pair, Pair)] == [b"one", b"3"]
    assert flaws_of(found) == [("files that come twice in a pair", f"{path}: 0.jpg")]


def test_flaws_are_counted_and_five_named() -> None:
    flaws = Flaws()
    for number in range(1000):
        flaws.add(Flaw("empty captions", f"a.tar: {number}"))
    flaws.add(Flaw("captions without a photo", "b.tar: 7"))
    assert flaws.remarks() == [
        "skipped 1000 empty captions: a.tar: 0, a.tar: 1, a.tar: 2, a.tar: 3, a.tar: 4, …",
        "skipped 1 captions without a photo: b.tar: 7"]
    assert len(flaws.locations["empty captions"]) == 6, "memory does not grow"


def test_tars_are_found_by_patterns_and_folders(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"t/{number:03}.tar", {})
    names = [f"{tmp_path}/t/{number:03}.tar" for number in range(3)]
    assert find_tars([f"{tmp_path}/t/{{000..002}}.tar"]) == names
    assert find_tars([f"{tmp_path}/t", names[0]]) == names
    assert find_tars(["s3://bucket/{0..1}.tar", "pipe:cat x"], allow_pipe=True) == [
        "s3://bucket/0.tar", "s3://bucket/1.tar", "pipe:cat x"]
    with pytest.raises(VplError, match=r"003.tar does not exist") as caught:
        find_tars([f"{tmp_path}/t/{{002..003}}.tar"])
    assert "002.tar" in caught.value.hint
    with pytest.raises(VplError, match="holds no tar"):
        find_tars([str(tmp_path)])
    with pytest.raises(VplError, match="no tar is given"):
        find_tars([])


def test_any_address_that_fsspec_knows(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    content = write_tar(tmp_path / "a.tar", numbered(2)).read_bytes()
    with fsspec.open("memory://tars/a.tar", "wb") as file:
        file.write(content)
    assert keys_of(list(read_tar("memory://tars/a.tar"))) == ["0000", "0001"]
    (what, where), = flaws_of(list(read_tar("nonsense://a.tar")))
    assert (what, where.split(" ")[0]) == ("tars that cannot be read", "nonsense://a.tar")
    (what, where), = flaws_of(list(read_tar("memory://tars/b.tar")))
    assert what == "tars that cannot be read"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("webdataset", "webdataset.shardlists"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(VplError, match="is not installed") as caught:
        find_tars(["a.tar"])
    assert "vpltool[tars]" in caught.value.hint


# The stream

@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tars")
    counts = (7, 3, 0, 5, 4)
    return [str(write_tar(folder / f"{number}.tar", {
        **numbered(count, 100 * number), f"{100 * number + 50}.jpg": b"no caption"}))
        for number, count in enumerate(counts)]


def taken(tars: Sequence[str], count: int, **how: Any) -> list[tuple[str, Cursor]]:
    stream = ((pair, cursor) for pair, cursor in stream_pairs(tars, seed=5, **how)
              if isinstance(pair, Pair))
    return [(pair.key, cursor) for pair, cursor in islice(stream, count)]


@pytest.mark.parametrize("window", [1, 4, 512])
def test_each_pair_comes_once_an_epoch_in_an_order_of_its_own(
        tars: list[str], window: int) -> None:
    keys = [key for key, _ in taken(tars, 38, window=window)]
    assert sorted(keys[:19]) == sorted(keys[19:]) == sorted(set(keys))
    assert keys[:19] != keys[19:]
    assert keys[:19] != sorted(keys[:19])


@pytest.mark.parametrize("window", [1, 4, 512])
@pytest.mark.parametrize(("part", "parts"), [(0, 1), (1, 2), (2, 9)])
def test_from_a_cursor_on_the_stream_is_the_same(
        tars: list[str], window: int, part: int, parts: int) -> None:
    how = {"window": window, "part": part, "parts": parts}
    whole = taken(tars, 40, **how)
    for stop in range(0, 30, 3):
        cursor = Cursor(**json.loads(json.dumps(vars(whole[stop][1]))))
        assert taken(tars, 9, start=cursor, **how) == whole[stop + 1:stop + 10], stop


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
def test_parts_share_the_pairs(tars: list[str], parts: int) -> None:
    """Whole tars where there are enough, else pairs: none twice and none lost in an epoch."""
    keys = []
    for part in range(parts):
        found = [key for key, cursor in taken(tars, 30, part=part, parts=parts)
                 if cursor.epoch == 0 or cursor == Cursor(1)]
        keys += found[:next((position for position in range(1, len(found))
                             if found[position] in found[:position]), len(found))]
    assert len(set(keys)) == len(keys) == 19


def test_flaws_are_told_once_an_epoch(tars: list[str]) -> None:
    stream = stream_pairs(tars, seed=0, window=4)
    found = [pair for pair, _ in islice(stream, 24)]
    assert sorted(flaws_of(found)) == sorted(
        ("photos without a caption", f"{tar}: {100 * number + 50}")
        for number, tar in enumerate(tars))


def test_an_empty_caption_is_not_told_twice(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.jpg": b"p", "0.txt": "", "1.jpg": b"p", "2.jpg": b"p",
                                          "2.txt": "two"})
    found = [pair for pair, _ in islice(stream_pairs([str(path)], seed=0), 3)]
    assert flaws_of(found) == [("empty captions", f"{path}: 0"),
                               ("photos without a caption", f"{path}: 1")]


@pytest.mark.parametrize("parts", [1, 3])
def test_a_stream_without_pairs_ends_with_an_error(tmp_path: Path, parts: int) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.jpg": b"p", "1.jpg": b"p"})
    with pytest.raises(VplError, match="no pair of a photo") as caught:
        list(islice(stream_pairs([str(path)], seed=0, part=parts - 1, parts=parts), 100))
    assert "KEY.jpg" in caught.value.hint


def test_memory_holds_a_window_only(tmp_path: Path) -> None:
    import tracemalloc

    path = write_tar(tmp_path / "a.tar", {
        name: content for number in range(300)
        for name, content in ((f"{number}.jpg", bytes(20_000)), (f"{number}.txt", "words"))})
    peaks = []
    for count in (30, 280):
        stream = stream_pairs([str(path)], seed=0, window=8)
        tracemalloc.start()
        assert sum(isinstance(pair, Pair) for pair, _ in islice(stream, count)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 40 * 20_000
