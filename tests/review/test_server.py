"""`review` without a browser: who may come, what is saved, and what survives."""

from __future__ import annotations

import base64
import http.client
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, copy_workspace
from PIL import Image
from review_server import TOKEN, Client, start_process

from vpltool.formats import describe, open_workspace, read_labels, write_labels
from vpltool.review import orders
from vpltool.review.desk import GRID, Conflict, Desk
from vpltool.review.journal import Journal
from vpltool.review.pictures import SCALES, photo_regions
from vpltool.review.server import ReviewServer


@pytest.fixture
def base(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip)


@pytest.fixture
def client(base: Path) -> Iterator[Client]:
    server = ReviewServer(Desk(base / "work", "", "train", "file"), "127.0.0.1", 0, TOKEN)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Client(server.server_port)
    server.shutdown()
    server.server_close()


def pixel(client: Client, key: str, op: str, label: int = 1, **more: Any) -> tuple[int, Any]:
    version = client.json("GET", f"/api/photo?id={key}")["version"]
    return client.ask("POST", "/api/edit", {
        "id": key, "version": version, "op": op, "what": "test", "box": [2, 3, 4, 2],
        "pixels": base64.b64encode(bytes([label] * 8)).decode(), "state": "corrected",
        "tags": None} | more)


def test_nobody_comes_without_the_token(client: Client) -> None:
    for path in ("/", "/review.js", "/api/start", "/photo?id=scene0", "/?token=" + "x" * 20):
        assert client.ask("GET", path, headers={"Cookie": ""})[0] == 403
    status, _, headers = client.raw("GET", f"/?token={TOKEN}", {"Cookie": ""})
    assert status == 303 and headers["Location"] == "/"
    assert "HttpOnly; SameSite=Strict" in headers["Set-Cookie"]


def test_other_hosts_and_pages_are_refused(client: Client) -> None:
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1", ""):
        assert client.ask("GET", "/api/start", headers={"Host": host})[0] == 403
    for origin in ("http://evil.example", "null", "", f"http://localhost:{client.port}"):
        answer = client.ask("POST", "/api/undo", {"id": "scene0", "version": 0},
                            headers={"Origin": origin})
        assert answer[0] == 403
    _, _, headers = client.raw("GET", "/")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")


@pytest.mark.parametrize("path", [
    "/../workspace.json", "/%2e%2e/workspace.json", "/api/photo?id=../../tags.csv",
    "/photo?id=../../../etc/passwd", "/thumb?id=nobody", "/page/server.py", "/server.py",
    "/api/layer?id=scene0&layer=../../x", "/api/layer?id=scene0&layer=before%20training%20../x"])
def test_an_id_never_becomes_a_path(client: Client, path: str) -> None:
    assert client.ask("GET", path)[0] in (404, 422)


@pytest.mark.parametrize("wrong", [
    {"box": [0, 0, 9999, 1]}, {"box": [-1, 0, 4, 2]}, {"pixels": "AAAA"}, {"state": "../x"},
    {"label": 77}, {"box": "x"}, {"pixels": 3}])
def test_edits_that_do_not_fit_are_refused(client: Client, base: Path, wrong: dict[str, Any]
                                           ) -> None:
    assert pixel(client, "scene0", "one", **wrong)[0] == 400
    assert not (base / "work/corrections").exists()


def test_an_edit_is_as_if_imported(client: Client, base: Path, run: Run, tmp_path: Path) -> None:
    before = read_labels(base / "work/masks/text-refined-full/train/scene0.png")
    status, found = pixel(client, "scene0", "one")
    assert status == 200 and found["state"] == "corrected"
    path = base / "work/corrections/scene0.png"
    expected = before.copy()
    expected[3:5, 2:6] = 1
    assert (read_labels(path) == expected).all()
    header = describe(path).header
    assert header is not None and header.supervision == "a corrected mask"
    written = path.read_bytes()
    shutil.move(base / "work/corrections", tmp_path / "moved")
    imported = run("prepare", "folder", base / "photos", "--corrections", tmp_path / "moved",
                   work=base / "work")
    assert imported.code == 0, imported.err
    assert path.read_bytes() == written
    stale = run("update", "--dry-run", work=base / "work")
    assert "train-decoder" in stale.out and "text-prototypes" not in stale.out


def test_undo_and_redo_outlive_the_server(client: Client, base: Path) -> None:
    pixel(client, "scene1", "one")
    pixel(client, "scene1", "two", 2)
    two = read_labels(base / "work/corrections/scene1.png")
    desk = Desk(base / "work", "", "train", "file")
    desk.move("scene1", desk.describe("scene1")[0]["version"], back=True)
    one = read_labels(base / "work/corrections/scene1.png")
    assert (two[3:5, 2:6] == 2).all() and (one[3:5, 2:6] == 1).all()
    desk.move("scene1", desk.describe("scene1")[0]["version"], back=True)
    assert not (base / "work/corrections/scene1.png").exists()
    assert desk.describe("scene1")[0]["state"] == "new"
    for _ in range(2):
        desk.move("scene1", desk.describe("scene1")[0]["version"], back=False)
    assert (read_labels(base / "work/corrections/scene1.png") == two).all()


def test_the_same_edit_twice_is_one_and_an_old_window_is_told(client: Client) -> None:
    assert pixel(client, "scene2", "one")[1] == pixel(client, "scene2", "one")[1]
    status, _ = pixel(client, "scene2", "two", version=0)
    assert status == 409


def test_accept_skip_and_all_background(client: Client, base: Path) -> None:
    empty = {"box": [0, 0, 0, 0], "pixels": ""}
    assert pixel(client, "scene0", "one", **empty, state="accepted")[0] == 200
    assert (read_labels(base / "work/corrections/scene0.png")
            == read_labels(base / "work/masks/text-refined-full/train/scene0.png")).all()
    pixel(client, "scene0", "two", **empty, state="skipped")
    assert not (base / "work/corrections/scene0.png").exists()
    listed = {key: state for key, _, state in client.json("GET", "/api/start")["photos"]}
    assert listed["scene0"] == "skipped" and listed["scene1"] == "new"


def test_a_wrong_tag_changes_the_tags_and_not_the_users_csv(client: Client, base: Path, run: Run
                                                            ) -> None:
    given = (base / "tags.csv").read_bytes()
    empty = {"box": [0, 0, 0, 0], "pixels": "", "state": "new"}
    old = open_workspace(base / "work").photos()[0].tags
    assert pixel(client, "scene0", "one", **empty, tags=[2])[1]["tags"] == [2]
    assert open_workspace(base / "work").photos()[0].tags != old
    assert (base / "tags.csv").read_bytes() == given
    told = run("update", "--dry-run", work=base / "work")
    assert "have changed since" not in told.err
    again = run("prepare", "folder", base / "photos", work=base / "work")
    assert again.code == 0, again.err
    assert len(open_workspace(base / "work").photos()[0].tags) == 1
    version = client.json("GET", "/api/photo?id=scene0")["version"]
    client.ask("POST", "/api/undo", {"id": "scene0", "version": version})
    assert open_workspace(base / "work").photos()[0].tags == old
    assert pixel(client, "scene0", "two", **empty, tags=[2])[1]["tags"] == [2]
    for _ in range(2):
        lost = run("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                   work=base / "work")
        assert lost.code == 0
        warning, = lost.lines("warning:")
        assert "1 photo has other tags than after `review`: scene0; --labels " in warning
        assert "review/tags.csv keeps those" in warning


def test_a_kill_between_journal_and_mask_is_repaired(base: Path, monkeypatch: pytest.MonkeyPatch
                                                     ) -> None:
    desk = Desk(base / "work", "", "train", "file")

    def killed(*_args: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vpltool.review.desk.take_corrections", killed)
    with pytest.raises(KeyboardInterrupt):
        desk.edit("scene0", 0, "one", "test", (0, 0, 2, 1), bytes([1, 2]), "corrected", None)
    assert not (base / "work/corrections/scene0.png").exists()
    monkeypatch.undo()
    Desk(base / "work", "", "train", "file")
    assert read_labels(base / "work/corrections/scene0.png")[0, :2].tolist() == [1, 2]


def test_a_killed_server_has_saved_everything(base: Path) -> None:
    child, port = start_process(base / "work")
    client = Client(port)
    assert pixel(client, "scene0", "one")[0] == 200
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert (read_labels(base / "work/corrections/scene0.png")[3:5, 2:6] == 1).all()
    desk = Desk(base / "work", "", "train", "file")
    assert desk.describe("scene0")[0]["history"] == ["test"]


def test_a_mask_that_somebody_else_replaced_is_what_counts(client: Client, base: Path) -> None:
    pixel(client, "scene0", "one")
    pixel(client, "scene1", "two")
    (base / "work/corrections/scene0.png").unlink()
    shutil.copy(base / "work/corrections/scene1.png", base / "work/corrections/scene2.png")
    desk = Desk(base / "work", "", "train", "file")
    assert desk.status("scene0").state == "new"
    assert desk.status("scene2").state == "corrected"
    assert Journal(base / "work/review/journal.sqlite").edits("scene0") == []


def test_a_large_photo_keeps_what_nobody_touched(base: Path) -> None:
    """Edited on a grid, written at the photo's size: single pixels elsewhere survive."""
    desk = Desk(base / "work", "", "train", "file")
    rng = np.random.default_rng(0)
    large = rng.integers(0, 3, (2 * GRID, GRID)).astype(np.uint8)
    large[40:44, 20:24] = 0
    desk._base = lambda key: large  # type: ignore[method-assign]
    desk.edit("scene0", 0, "one", "test", (10, 20, 2, 2), bytes([2] * 4), "corrected", None)
    found = read_labels(base / "work/corrections/scene0.png")
    assert (found[40:44, 20:24] == 2).all()
    found[40:44, 20:24] = large[40:44, 20:24]
    assert (found == large).all()
    with pytest.raises(Conflict):
        desk.edit("scene0", 0, "two", "test", (0, 0, 0, 0), b"", "accepted", None)


def test_orders(base: Path) -> None:
    desk = Desk(base / "work", "masks/text-refined-full", "train", "worst-tags")
    ids = {name: desk.ordered(name) for name in orders.ORDERS}
    assert all(sorted(found) == sorted(desk.photos) for found in ids.values())
    assert ids["file"] == list(desk.photos) and ids["random"] != ids["file"]
    unsure = {key: float((read_labels(base / f"work/masks/text-refined/train/{key}.png") == 255
                          ).mean()) for key in desk.photos}
    assert ids["uncertain"] == sorted(unsure, key=lambda key: -unsure[key])


def test_worst_tags_first_then_what_two_masks_disagree_about(base: Path) -> None:
    desk = Desk(base / "work", "", "train", "worst-tags")
    shown, other = (base / f"work/masks/text-refined-full/train/{key}.png"
                    for key in ("scene0", "scene1"))
    header = describe(shown).header
    photos = {key: desk.photos[key] for key in ("scene0", "scene1")}
    tagged = {key: desk.workspace.indices_of(photo) for key, photo in photos.items()}
    for path, key in ((shown, "scene0"), (other, "scene1")):
        labels = np.zeros_like(read_labels(path))
        for row, index in enumerate(tagged[key]):
            labels[2 * row:2 * row + 2] = index
        write_labels(path, labels, header)
    first = orders.rank(desk.workspace, desk.shown, list(photos.values()), "worst-tags",
                             "train")
    # Both show what their tags say; the other one is made to lack a class.
    write_labels(shown if first[0] == "scene1" else other,
                 np.zeros_like(read_labels(shown)), header)
    assert orders.rank(desk.workspace, desk.shown, list(photos.values()), "worst-tags",
                            "train") == first[::-1]


def test_photos_without_a_mask_come_first_but_for_what_cannot_be_shown(base: Path) -> None:
    for key in ("scene1", "scene2"):
        (base / f"work/masks/text-refined-full/train/{key}.png").unlink()
    (base / "photos/scene2.png").write_text("no photo")
    desk = Desk(base / "work", "", "train", "worst-tags")
    ranked = orders.rank(desk.workspace, desk.shown, list(desk.photos.values()), "worst-tags",
                         "train")
    assert (ranked[0], ranked[-1]) == ("scene1", "scene2")


def test_regions_follow_edges() -> None:
    """Two colours are never in one region, and there are about as many as were asked for."""
    photo = np.zeros((120, 160, 3), np.uint8)
    photo[:, 83:] = (220, 60, 30)
    for count, regions in zip(SCALES.values(), photo_regions(photo), strict=True):
        assert regions.shape == (120, 160)
        assert count / 2 < len(np.unique(regions)) < 2 * count
        assert not set(regions[:, :83].ravel()) & set(regions[:, 83:].ravel())


def test_arrays_are_sent_whole(client: Client, base: Path) -> None:
    (labels,) = client.array("/api/photo?id=scene0")
    assert (labels == read_labels(base / "work/masks/text-refined-full/train/scene0.png")).all()
    assert client.array("/api/regions?id=scene0").size == 2 * len(SCALES) * labels.size


def test_proposals_are_regions(base: Path, run: Run, tmp_path: Path) -> None:
    """The smallest proposal that holds a pixel, and superpixels where there is none."""
    shape = read_labels(base / "work/masks/text-refined-full/train/scene0.png").shape
    inside = np.zeros(shape, np.uint8)
    inside[4:20, 6:30] = 255
    part = np.zeros(shape, np.uint8)
    part[8:12, 10:16] = 255
    for number, mask in enumerate((part, inside)):
        path = tmp_path / "found" / "scene0" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    made = run("propose", "--method", "files", "--path", tmp_path / "found", "--format", "masks",
               "--workers", 0, work=base / "work")
    desk = Desk(base / "work", "", "train", "file")
    assert desk.scales == ["large", "small", "proposals files"], made.err
    large, _, proposed = desk.regions("scene0")
    assert (proposed[(inside == 0)] == large[(inside == 0)]).all()
    assert len({*proposed[part > 0]}) == 1 and len({*proposed[(inside > 0) & (part == 0)]}) == 1
    assert len({*proposed[inside > 0]} - {*large.ravel()}) == 2
    assert (desk.regions("scene1")[2] == desk.regions("scene1")[0]).all()


def test_training_again(client: Client, base: Path, run: Run, tmp_path: Path,
                        monkeypatch: pytest.MonkeyPatch) -> None:
    """The child runs what the page says, the new masks are shown, and the old can be compared.

    It runs beside a folder `vpltool`, too, such as a clone, which Python takes for the package.
    """
    (tmp_path / "beside/vpltool").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "beside")
    pixel(client, "scene0", "one")
    lines = client.json("GET", "/api/start")["training"]["lines"]
    assert [line.split()[-1] if "update" in line else line.split()[3] for line in lines] == [
        "update", "predict", "predict", "eval"]
    # As if a training had been stopped while it predicted: the next one goes on.
    assert run("predict", "--split", "val", "--decoder", "tiny", work=base / "work").code == 0
    manifest = base / "work/predictions/tiny/val/artifact.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    next(manifest.parent.glob("*.png")).unlink()
    assert client.ask("POST", "/api/train", {})[0] == 200
    found = client.until(lambda: not (state := client.json("GET", "/api/poll?since=0"))[
        "training"]["runs"] and state, 300)
    assert not found["training"]["error"], found
    assert found["shown"] == "predictions/tiny"
    assert [one["photos"] for one in found["training"]["curve"]] == [0, 1]
    header = describe(base / "work/decoder/tiny.safetensors").header
    assert header is not None and "1 corrected mask" in header.supervision
    assert "before training 1" in client.json("GET", "/api/start")["layers"]
    assert client.ask("GET", "/api/layer?id=scene1&layer=before%20training%201")[0] == 200
    assert client.json("GET", "/api/photo?id=scene0")["history"] == ["test"]


def test_a_training_whose_scores_cannot_be_kept_can_begin_again(
    client: Client, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (base / "child").write_text("#!/bin/sh\necho '{\"point\": {\"scores\": {}}}'\nsleep 100\n")
    (base / "child").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(base / "child"))
    monkeypatch.setattr("vpltool.review.training.write_json", full)
    for _ in range(2):
        assert client.ask("POST", "/api/train", {})[0] == 200
        found = client.until(lambda: not (state := client.json("GET", "/api/poll?since=0"))[
            "training"]["runs"] and state, 60)
        assert "No space left on device" in found["training"]["error"]


def test_why_a_training_stopped_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/ls")
    assert client.ask("POST", "/api/train", {})[0] == 200
    found = client.until(lambda: not (state := client.json("GET", "/api/poll?since=0"))[
        "training"]["runs"] and state, 60)
    assert re.fullmatch(r"training has stopped; what is finished is kept \(.*ls.*\)",
                        found["training"]["error"])


def test_what_the_command_refuses(base: Path, run: Run) -> None:
    refused = run("review", "--host", "0.0.0.0", "--port", 0, work=base / "work")
    assert refused.code == 1 and "--host=" not in refused.out
    assert "without encryption" in refused.err and "--token" in refused.err
    refused = run("review", "--token", "short", work=base / "work")
    assert refused.code == 1 and "too short" in refused.err
    (base / "work/review").mkdir(exist_ok=True)
    (base / "work/review/journal.sqlite").write_bytes(b"not a data base, but long enough" * 99)
    refused = run("review", "--order", "file", "--port", 0, work=base / "work")
    assert refused.code == 1 and "journal.sqlite is no journal" in refused.err
    shutil.rmtree(base / "work/review")
    refused = run("review", "--what", "masks/none", work=base / "work")
    assert refused.code == 1 and "masks/none" in refused.err


def test_a_request_that_is_too_long_is_not_read(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    connection.request("POST", "/api/edit", headers=client.headers | {
        "Content-Length": str(1 << 30)})
    assert connection.getresponse().status == 400
