"""Tars in object storage: photos from a server that speaks S3, on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run
from test_prepare_tars import jpeg
from test_webdataset import numbered, write_tar

from vpltool.datasets.webdataset import find_tars, read_tar
from vpltool.formats import open_workspace

BUCKET = "photos"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket with two tars, and what fsspec needs to find the server."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    folder = tmp_path_factory.mktemp("tars")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
                            ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"),
                            ("AWS_DEFAULT_REGION", "us-east-1")):
            patch.setenv(name, value)
        import s3fs

        store = s3fs.S3FileSystem(skip_instance_cache=True)
        store.mkdir(BUCKET)
        for tar, shades in (("000.tar", (0, 60)), ("001.tar", (120, 180))):
            local = write_tar(folder / tar, {
                name: content for number, shade in enumerate(shades) for name, content in (
                    (f"{number}.jpg", jpeg(shade)), (f"{number}.txt", "a cat"),
                    (f"{number}.cls", "cat" if number else "dog"))})
            store.put(str(local), f"{BUCKET}/{tar}")
        large = write_tar(folder / "large.tar", numbered(3) | {
            "9.jpg": bytes(20_000_000), "9.txt": "nothing to see"})
        store.put(str(large), f"{BUCKET}/large.tar")
        yield f"s3://{BUCKET}"
        server.stop()


def test_a_workspace_of_tars_in_a_bucket(run: Run, bucket: str, tmp_path: Path) -> None:
    """The same as of files; a second call reads, and writes nothing."""
    address = f"{bucket}/{{000..001}}.tar"
    result = run("prepare", "webdataset", address, work=tmp_path)
    assert result.code == 0, result.err
    workspace = open_workspace(tmp_path)
    assert [photo.id for photo in workspace.photos()] == ["000/0", "000/1", "001/0", "001/1"]
    assert workspace.classes == ("cat", "dog")
    assert [workspace.image_path(photo).read_bytes() for photo in workspace.photos()] == [
        jpeg(shade) for shade in (0, 60, 120, 180)]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert run("prepare", "webdataset", address, work=tmp_path).code == 0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_tar_larger_than_a_part_of_a_download(bucket: str) -> None:
    (address,) = find_tars([f"{bucket}/large.tar"])
    pairs = list(read_tar(address))
    assert len(pairs) == 4
    assert len(pairs[-1].photo) == 20_000_000  # type: ignore[union-attr]


def test_a_tar_that_is_not_there_is_named(run: Run, bucket: str, tmp_path: Path) -> None:
    result = run("prepare", "webdataset", f"{bucket}/000.tar", f"{bucket}/none.tar", work=tmp_path)
    assert result.code == 0
    assert any("skipped 1 tars that cannot be read: s3://photos/none.tar" in line
               for line in result.lines("warning:")), result.err
    alone = run("prepare", "webdataset", "s3://no-such-bucket/0.tar", work=tmp_path / "x")
    assert alone.code == 1
    assert len(alone.lines("error:")) == 1


def test_features_in_a_bucket(run: Run, bucket: str, copied: Path, ready: Path) -> None:
    """Packed there, and read photo by photo: the same bytes come out as of files."""
    work = copied / "work"
    result = run("pack", "--to", f"{bucket}/features", work=work)
    assert result.code == 0, result.err
    assert sorted(file.name for file in (work / "features/train").rglob("*") if file.is_file()) == [
        "0-of-1-000000.json", "artifact.json"]
    before = {file.name: file.read_bytes() for file in (work / "cams/text/train").iterdir()}
    made = run("cam", "--overwrite", work=work)
    assert made.code == 0, made.err
    assert {file.name: file.read_bytes() for file in (work / "cams/text/train").iterdir()} == before
    import s3fs

    store = s3fs.S3FileSystem(skip_instance_cache=True)
    tar = f"{bucket}/features/0-of-1-000000.tar"
    store.pipe_file(tar, store.cat_file(tar)[:1000])
    cut = run("cam", "--overwrite", work=work)
    assert cut.code == 1 and tar in cut.lines("error:")[0]
    store.rm(tar)
    gone = run("cam", "--overwrite", work=work)
    assert gone.code == 1 and tar in gone.lines("error:")[0]
    refused = run("pack", "--split", "val", "--to", "s3://no-such-bucket/x", work=work)
    assert refused.code == 1 and len(list((work / "features/val").glob("*.safetensors"))) > 0
