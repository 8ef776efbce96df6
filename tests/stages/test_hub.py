"""`push` and `pull` by huggingface_hub's own client, against a small hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from conftest import Run

import vpltool
from vpltool.formats import describe
from vpltool.formats.storage import read_part, write_bundle

TOKEN = "hf_of_the_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What a push and a pull need of the hub's HTTP interface; repositories are dictionaries."""

    files: dict[str, dict[str, bytes]] = {}
    private: dict[str, bool] = {}

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(name, {})
            self.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.answer(200, {"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(sent)["files"]]})
        elif "/commit/" in self.path:
            self.commit("/".join(self.path.split("/")[3:5]), sent)
        else:
            self.answer(404, {"error": self.path})

    def commit(self, name: str, sent: bytes) -> None:
        for line in map(json.loads, sent.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}",
                          "commitOid": COMMIT, "pullRequestUrl": None})

    def do_HEAD(self) -> None:  # noqa: N802 - http.server's name
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        _, owner, name, *rest = unquote(self.path.partition("?")[0]).split("/")
        files = self.files.get(f"{owner}/{name}")
        if files is None:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] != ["resolve"] or rest[2] not in files:
            self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(200, files[rest[2]])

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {
                "Content-Length": str(len(content)), "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Content-Type":
                "application/octet-stream" if isinstance(body, bytes) else "application/json",
                **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def bundle(layered: Path, run: Run) -> Path:
    result = run("export", "bundle", "--what", "tiny", "--licence", "CC-BY-4.0",
                 work=layered / "work")
    assert result.code == 0, result.err
    return Path(result.out.strip())


def vpltool_at(endpoint: str, folder: Path, *words: object, token: str = TOKEN
               ) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own: the client reads its settings at import."""
    home = folder / ".hf"
    return subprocess.run(
        [sys.executable, "-m", "vpltool", *map(str, words)], capture_output=True, text=True,
        check=False, cwd=folder, timeout=120, env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(vpltool.__file__).parents[1]),
            "HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1", "HOME": str(folder), "OMP_NUM_THREADS": "1"})


def test_there_and_back_again(hub: str, bundle: Path, layered: Path, tmp_path: Path) -> None:
    """What is pulled is what was pushed, byte for byte, and it is ready for `predict`."""
    pushed = vpltool_at(hub, tmp_path, "push", "me/shapes", "--segmenter", bundle, "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub}/me/shapes"
    assert Hub.private["me/shapes"]
    assert sorted(Hub.files["me/shapes"]) == ["README.md", "segmenter.safetensors"]
    assert Hub.files["me/shapes"]["segmenter.safetensors"] == bundle.read_bytes()
    pulled = vpltool_at(hub, tmp_path, "pull", "me/shapes")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout.strip() == "shapes.safetensors"
    assert (tmp_path / "shapes.safetensors").read_bytes() == bundle.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hf"] == [
        "shapes.safetensors"]


def test_the_card_is_made_from_the_header(bundle: Path, run: Run) -> None:
    result = run("push", "me/shapes", "--segmenter", bundle, "--card")
    assert result.code == 0, result.err
    _, metadata, text = result.out.split("---\n", 2)
    said = yaml.safe_load(metadata)
    assert said["license"] == "cc-by-4.0"
    assert said["pipeline_tag"] == "image-segmentation"
    assert said["library_name"] == "vpltool"
    header = describe(bundle).header
    assert header is not None
    for word in ("1 bar, 2 box, 3 disc", "vpltool pull me/shapes", "iters 5", "crop 3",
                 f"vpltool {header.version}", "- The segmenter: CC-BY-4.0."):
        assert word in text


def test_another_licence_is_named(layered: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    assert run("export", "bundle", "--what", "tiny", "--licence", "Ours alone", "-o", path,
               work=layered / "work").code == 0
    said = yaml.safe_load(run("push", "me/own", "--segmenter", path, "--card").out.split("---")[1])
    assert (said["license"], said["license_name"]) == ("other", "Ours alone")


@pytest.mark.parametrize(("words", "token", "said", "hint"), [
    (("push", "me/shapes", "--segmenter", "BUNDLE"), "hf_wrong", "you are not logged in",
     "hf auth login"),
    (("pull", "me/nothing"), TOKEN, "me/nothing on the hub: it does not exist", "check the name"),
    (("pull", "me/other"), TOKEN, "holds something that vpltool did not make, expected bundle",
     "vpltool export bundle"),
])
def test_what_the_hub_refuses(words: tuple[str, ...], token: str, said: str, hint: str, hub: str,
                              bundle: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save

    Hub.files["me/other"] = {"segmenter.safetensors": save({})}
    result = vpltool_at(hub, tmp_path, *(str(bundle) if word == "BUNDLE" else word
                                         for word in words), token=token)
    assert result.returncode == 1, result.stdout
    error, advice = result.stderr.strip().splitlines()
    assert said in error
    assert hint in advice
    assert [path.name for path in tmp_path.iterdir() if path.name != ".hf"] == []


def test_no_hub_at_all(bundle: Path, tmp_path: Path) -> None:
    result = vpltool_at("http://127.0.0.1:9", tmp_path, "push", "me/shapes", "--segmenter", bundle)
    assert result.returncode == 1
    assert "me/shapes on the hub: " in result.stderr
    assert "check the network" in result.stderr


def test_a_folder_of_this_machine_is_not_published(bundle: Path, tmp_path: Path, run: Run) -> None:
    """Of an encoder, as bundles of earlier versions hold it."""
    header = describe(bundle).header
    assert header is not None
    header.facts["trained"]["options"]["encoder"] = "timm:vit,/home/alice/vit.pth"
    write_bundle(tmp_path / "b.safetensors", header, *(
        read_part(bundle, part)[1] for part in ("decoder", "tower")))
    result = run("push", "me/shapes", "--segmenter", tmp_path / "b.safetensors", "--card")
    assert result.code == 1
    assert result.lines("error:")[0].endswith("names a folder of the machine that made it")
    assert result.lines("hint:") == ["vpltool export bundle again leaves it out"]


@pytest.mark.parametrize(("words", "said"), [
    (("push", "shapes"), "`shapes` is not a name on the hub"),
    (("pull", "me/../you"), "is not a name on the hub"),
    (("push", "me/shapes"), "no bundle in "),
])
def test_what_is_refused_beforehand(words: tuple[str, ...], said: str, run: Run, tmp_path: Path
                                    ) -> None:
    result = run(*words, work=tmp_path)
    assert result.code == 1
    assert said in result.lines("error:")[0]


def test_a_file_that_is_there_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shapes.safetensors").write_text("mine")
    result = run("pull", "me/shapes", work=tmp_path)
    assert "already exists" in result.lines("error:")[0]
    assert "--overwrite" in result.lines("hint:")[0]
    assert (tmp_path / "shapes.safetensors").read_text() == "mine"
