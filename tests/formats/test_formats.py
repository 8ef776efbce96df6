"""Files: round trips, atomic writes, headers, damage, resume."""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vpltool.errors import VplError, explain, not_permitted
from vpltool.formats import (
    KINDS,
    Header,
    describe,
    expect_header,
    open_input,
    open_output,
    read_labels,
    read_tensors,
    storage,
    voc_palette,
    write_json,
    write_labels,
    write_tensors,
)
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import Kind
from vpltool.shell import to_shell

DTYPES = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
LENGTHS = {"patches": 6, "tokens": 7, "width": 4, "dim": 5, "layers": 2, "blocks": 3, "rows": 3,
           "classes": 2, "height": 3, "joint": 4, "further": 1, "groups": 4, "parts": 2,
           "runs": 5, "proposals": 2, "letters": 3}


def example(kind: Kind, *, optional: bool = True) -> dict[str, Tensor]:
    """Tensors that fit a kind; a kind that fixes none holds anything."""
    if not kind.tensors:
        return {"weight": torch.arange(6.0).view(2, 3), "index": torch.tensor([3, 1])}
    tensors = {}
    for name, spec in kind.tensors.items():
        if spec.optional and not optional:
            continue
        shape = [int(axis) if axis.isdigit() else LENGTHS[axis] for axis in spec.axes]
        tensors[name] = torch.arange(int(np.prod(shape))).view(shape).to(DTYPES[spec.dtypes[0]])
    if kind.name == "features":
        tensors["grid"] = torch.tensor([1, LENGTHS["patches"]])
    return tensors


TENSOR_KINDS = [kind for kind in KINDS.values() if kind.layout in ("tensors", "tensors-folder")]
LABEL_KINDS = [kind for kind in KINDS.values() if kind.layout == "labels-folder"]
CAMS = KINDS["cams"]


def header_of(kind: str = "cams", **parts: Any) -> Header:
    options = ({"keep": ["patches"], "layers": [], "scale": 1.0, "max_side": 0}
               if kind == "features" else {"tau": 0.01})
    return Header(kind=kind, command="cam", options=options | {"split": "train"},
                  inputs={"features": "abc"}, model={"name": "tiny", "fingerprint": "f"}, **parts)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("kind", TENSOR_KINDS, ids=lambda kind: kind.name)
def test_tensors_come_back(tmp_path: Path, kind: Kind, optional: bool) -> None:
    header = header_of(kind.name, facts={"gap": 0.5, "rows": ["a", "ö"]})
    tensors = example(kind, optional=optional)
    write_tensors(tmp_path / "a.safetensors", header, tensors)
    found, content = read_tensors(tmp_path / "a.safetensors", kind.name)
    assert found == header
    assert content.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert content[name].dtype == tensor.dtype
        assert torch.equal(content[name], tensor)
    assert expect_header(tmp_path / "a.safetensors", kind.name) == header


@pytest.mark.parametrize("kind", [KINDS["features"], CAMS], ids=lambda kind: kind.name)
def test_single_precision_comes_back_where_it_may_be_stored(tmp_path: Path, kind: Kind) -> None:
    tensors = {name: tensor.float() / 3 if tensor.is_floating_point() else tensor
               for name, tensor in example(kind).items()}
    write_tensors(tmp_path / "a.safetensors", header_of(kind.name), tensors)
    _, content = read_tensors(tmp_path / "a.safetensors", kind.name)
    assert all(torch.equal(content[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", LABEL_KINDS, ids=lambda kind: kind.name)
def test_labels_come_back(tmp_path: Path, kind: Kind) -> None:
    labels = np.array([[0, 1, 20], [255, 254, 0]], np.uint8)
    header = header_of(kind.name, facts={"note": "ö"})
    write_labels(tmp_path / "a.png", labels, header)
    assert (read_labels(tmp_path / "a.png") == labels).all()
    assert describe(tmp_path / "a.png").header == header
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette()
        assert json.loads(image.text["vpltool"])["kind"] == kind.name


def test_voc_palette() -> None:
    colours = np.array(voc_palette()).reshape(256, 3).tolist()
    assert colours[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[20] == [0, 64, 128]
    assert colours[255] == [224, 224, 192]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_of_colours_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(VplError, match="a.png"):
        read_labels(tmp_path / "a.png")


def test_labels_that_may_not_be_read_are_not_to_be_deleted(tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.png").chmod(0o240)

    def refuse(path: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("vpltool.formats.labels.Image", SimpleNamespace(open=refuse))
    with pytest.raises(VplError, match=r"you may not read .*a.png \(owner .+ 240\)") as caught:
        read_labels(tmp_path / "a.png")
    assert caught.value.hint == f"run: chmod u+r {tmp_path / 'a.png'}"


def test_damaged_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    labels = np.random.default_rng(0).integers(0, 256, (64, 80)).astype(np.uint8)
    write_labels(path, labels, header_of("masks"))
    whole = path.read_bytes()
    for end in range(0, len(whole) - 40, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(VplError, match="a.png"):
            read_labels(path)


def test_non_contiguous_tensors_come_back(tmp_path: Path) -> None:
    """safetensors' own writers trust the memory layout and would write garbage."""
    whole = torch.arange(48).half().view(4, 3, 4)
    views = [whole.permute(2, 1, 0), whole[::2], whole[:, :, 1:3], whole.flip(0),
             whole[:1].expand(5, -1, -1)]
    for view in views:
        write_tensors(tmp_path / "a.safetensors", header_of(),
                      {"cam": view, "classes": torch.arange(2 * len(view))[::2]})
        content = read_tensors(tmp_path / "a.safetensors", "cams")[1]
        assert torch.equal(content["cam"], view)
        assert torch.equal(content["classes"], torch.arange(2 * len(view))[::2])


@pytest.mark.parametrize(("change", "said"), [
    ({"cam": torch.zeros(2, 3, 4).double()}, "F64"),
    ({"cam": torch.zeros(2, 3).half()}, "cam"),
    ({"cam": torch.zeros(3, 3, 4).half()}, "classes"),
    ({"extra": torch.zeros(1)}, "extra"),
    ({"classes": None}, "classes"),
])
def test_tensors_that_do_not_fit_the_kind_are_not_written(
    tmp_path: Path, change: dict[str, Tensor | None], said: str
) -> None:
    tensors = {name: value for name, value in (example(CAMS) | change).items() if value is not None}
    with pytest.raises(VplError, match=said):
        write_tensors(tmp_path / "a.safetensors", header_of(), tensors)
    assert list(tmp_path.iterdir()) == []


def write_any(path: Path) -> None:
    write_tensors(path, header_of(), example(CAMS))


WRITERS = {
    "tensors": ("a.safetensors", write_any),
    "labels": ("a.png", lambda path: write_labels(path, np.zeros((2, 2), np.uint8),
                                                  header_of("masks"))),
    "json": ("a.json", lambda path: write_json(path, {"a": 1})),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, writer: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    name, write = WRITERS[writer]
    path = tmp_path / name
    path.write_bytes(b"old")

    def full(self: Path, *_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(VplError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("writer", WRITERS)
def test_permissions_follow_the_umask(tmp_path: Path, writer: str, umask: int, mode: int) -> None:
    name, write = WRITERS[writer]
    before = os.umask(umask)
    try:
        write(tmp_path / name)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_writing_leaves_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the umask changes it for a moment, for all threads."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("changes the umask"))
    with atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VplError, match="cannot write") as caught:
        write_any(tmp_path / "file" / "a.safetensors")
    assert caught.value.hint == "choose another folder"


def test_a_folder_that_another_process_removes_while_a_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the last shard does with that of shard manifests."""
    touch, folder = Path.touch, tmp_path / ".shards"

    def late(path: Path, **options: Any) -> None:
        monkeypatch.setattr(Path, "touch", touch)
        folder.rmdir()
        touch(path, **options)

    monkeypatch.setattr(Path, "touch", late)
    with atomic_path(folder / "a.json") as temporary:
        temporary.write_text("new")
    assert [path.name for path in folder.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("number", "said", "hint"), [
    (errno.EACCES, "you may not write into {} (owner ", "+w {}; or choose another folder"),
    (errno.EROFS, "Read-only file system", "choose another folder"),
    (errno.ENOSPC, "No space left on device", "free some space, or choose another folder")])
def test_a_folder_that_cannot_be_written(number: int, said: str, hint: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    tmp_path.chmod(0o500)
    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.F_OK or path != tmp_path)
    with pytest.raises(VplError) as caught:
        write_any(tmp_path / "a.safetensors")
    assert caught.value.message.startswith(
        f"cannot write {tmp_path / 'a.safetensors'}: {said.format(tmp_path)}")
    assert caught.value.hint.endswith(hint.format(tmp_path))
    assert ("space" in caught.value.hint) == (number == errno.ENOSPC)
    # As on Windows, if the drive is gone.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(VplError, match="cannot write "):
        write_any(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("mode", "hint"), [
    (0o500, "run: chmod u+w "), (0o600, "run: chmod u+x "), (0o400, "run: chmod u+wx "),
    (0o700, "ask the owner or the administrator")])
def test_missing_rights_are_named(mode: int, hint: str, tmp_path: Path) -> None:
    """A mode that grants all is told apart: other rules of the system forbid it."""
    tmp_path.chmod(mode)
    assert not_permitted(tmp_path, "write into", "wx").hint.startswith(hint)
    tmp_path.chmod(0o700)


def test_truncated_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_any(path)
    whole = path.read_bytes()
    for end in [*range(0, 24), *range(24, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(VplError, match="a.safetensors") as caught:
            read_tensors(path, "cams")
        assert caught.value.hint


@pytest.mark.parametrize("entries", [
    b"[]", b"17", b'{"a": 3}', b'{"a": {"dtype": "F16"}}', b'{"__metadata__": {"vpltool": "[]"}}',
    b'{"a": {"dtype": {"": {}}, "shape": [16], "data_offsets": [0, 0]}}',
    b'{"a": {"dtype": "F16 8", "shape": [0], "data_offsets": [0, 0]}}',
    b'{"__metadata__": {"vpltool": "{}"}}', b'{"__metadata__": {"vpltool": "{"}}', b"\xff\xfe{}"])
def test_garbage_is_named(tmp_path: Path, entries: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(entries)) + entries)
    with pytest.raises(VplError, match="a.safetensors"):
        read_tensors(tmp_path / "a.safetensors", "cams")


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    for kind in TENSOR_KINDS:
        with pytest.raises(VplError, match="a.safetensors") as caught:
            read_tensors(tmp_path / "a.safetensors", kind.name)
        assert caught.value.hint == kind.made_by


def test_wrong_kind(tmp_path: Path) -> None:
    write_any(tmp_path / "a.safetensors")
    with pytest.raises(VplError, match="holds cams, expected prototypes") as caught:
        read_tensors(tmp_path / "a.safetensors", "prototypes")
    assert "text-prototypes" in to_shell(caught.value.hint)


def test_somebody_elses_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(example(CAMS), tmp_path / "a.safetensors")
    with pytest.raises(VplError, match="did not make"):
        read_tensors(tmp_path / "a.safetensors", "cams")


def test_a_missing_tensor(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", header_of("features"),
                  example(KINDS["features"], optional=False))
    with pytest.raises(VplError, match="attention") as caught:
        read_tensors(tmp_path / "a.safetensors", "features", ("grid", "attention"))
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["cams", "masks"])
def test_a_newer_format_is_refused(tmp_path: Path, kind: str) -> None:
    header = header_of(kind, version="9.0", format=KINDS[kind].version + 1)
    if kind == "cams":
        path = tmp_path / "a.safetensors"
        write_tensors(path, header, example(CAMS))
    else:
        path = tmp_path / "a.png"
        write_labels(path, np.zeros((2, 2), np.uint8), header)
    with pytest.raises(VplError, match=r"9\.0") as caught:
        describe(path)
    assert "-U" in caught.value.hint


def test_config_hash_is_of_what_determines_the_content() -> None:
    header = header_of()
    same = [replace(header, facts={"objective": 1.5}), replace(header, version="7.7"),
            replace(header, options={"split": "train", "tau": 0.01})]
    assert {other.config_hash for other in same} == {header.config_hash}
    others = [replace(header, options={"tau": 0.02, "split": "train"}),
              replace(header, inputs={"features": "abd"}), replace(header, model={"name": "tiny"}),
              replace(header, command="refine"), replace(header, kind="features"),
              replace(header, format=2)]
    assert len({header.config_hash, *(other.config_hash for other in others)}) == 7


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_any(tmp_path / f"{name}.safetensors")
        write_labels(tmp_path / f"{name}.png", np.eye(4, dtype=np.uint8), header_of("masks"))
    for suffix in (".safetensors", ".png"):
        first, second = ((tmp_path / (name + suffix)).read_bytes() for name in "ab")
        assert first == second


def test_open_output_of_a_missing_folder(tmp_path: Path) -> None:
    output = open_output(tmp_path / "cams", header_of(), ["a", "sub/b"])
    assert output.todo == ["a", "sub/b"]
    assert not (tmp_path / "cams").exists()
    output.begin()
    assert not json.loads((tmp_path / "cams/artifact.json").read_text())["complete"]
    for key in output.todo:
        output.write_tensors(key, example(CAMS))
    assert torch.equal(open_input(tmp_path / "cams", ("cams",)).read_tensors("sub/b")["classes"],
                       example(CAMS)["classes"])


def test_a_file_that_goes_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                            ) -> None:
    """Its header was read; safetensors then finds nothing, and says so without an errno."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, header_of(), example(CAMS))
    whole = storage.expect_header

    def then_gone(*given: Any) -> Header:
        found = whole(*given)
        path.unlink()
        return found

    monkeypatch.setattr(storage, "expect_header", then_gone)
    with pytest.raises(VplError, match=r"no cams at .*a\.safetensors"):
        read_tensors(path, "cams")


def test_safetensors_own_error_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, safe_open(tmp_path / "none", framework="pt"):
        pass
    told = explain(raised.value)
    assert told is not None
    assert str(tmp_path / "none") in told.message


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_what_the_machine_lacks_is_no_damage(error: Exception, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file may be deleted and made again; one that cannot be opened now may not."""
    path = tmp_path / "scene0.safetensors"
    write_tensors(path, Header("tags", "tag"), {"scores": torch.ones(3)})

    def refuse(*_given: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(storage, "safetensors", SimpleNamespace(
        safe_open=refuse, SafetensorError=SafetensorError))
    with pytest.raises(type(error)):
        storage.check_file(path)


def test_a_geotiff_without_rasterio_names_what_to_install(tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.tif"
    Image.new("L", (4, 4)).save(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(VplError) as refused:
        describe(path)
    assert refused.value.hint == "pip install 'vpltool[geo]'"
