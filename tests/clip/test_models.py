"""Weights in every form, and files that hold none: the same features, or one clear line."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import (
    CHAIN,
    EMBED_DIM,
    TEXT,
    TRAIN,
    VISION,
    Run,
    draw_scenes,
    run_chain,
    write_scenes,
)
from conftest import prepare as prepare_clip
from safetensors.torch import save_file

from vpltool.clip import catalogue, models
from vpltool.clip.catalogue import check_source, import_open_clip
from vpltool.clip.load import load_clip
from vpltool.clip.models import CONFIG, find_source
from vpltool.clip.weights import OPENAI_EXTRAS, read_weights, recognise
from vpltool.errors import VplError
from vpltool.formats import read_tensors
from vpltool.shell import to_shell

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning",
                                        "ignore::UserWarning")

CPU = torch.device("cpu")
QUICK = "tiny-quickgelu"
CONFIGURATION = {"embed_dim": EMBED_DIM, "vision_cfg": VISION, "text_cfg": TEXT}
PLAIN_VISION = {key: value for key, value in VISION.items() if key != "ls_init_value"}


@pytest.fixture(scope="module", autouse=True)
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`tiny` and `tiny-quickgelu`, and no LayerScale: models by name, as open_clip lists them."""
    open_clip = import_open_clip()
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("tiny", False), (QUICK, True)):
        (folder / f"{name}.json").write_text(json.dumps(
            CONFIGURATION | {"vision_cfg": PLAIN_VISION, "quick_gelu": quick}))
    known, files = dict(open_clip.factory._MODEL_CONFIGS), models.config_files()
    open_clip.add_model_config(folder)
    files |= {file.stem: file for file in folder.iterdir()}
    with mock.patch.object(models, "config_files", lambda: files):
        yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    open_clip.factory._MODEL_CONFIGS = known


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(2)
    built = import_open_clip().CLIP(EMBED_DIM, PLAIN_VISION, TEXT, quick_gelu=True)
    with torch.no_grad():
        built.token_embedding.weight.normal_()
    return built.eval()


def as_openai(model: Any) -> Any:
    """A copy with the numbers that OpenAI's files carry among the weights."""
    import copy

    marked = copy.deepcopy(model)
    for name, value in zip(OPENAI_EXTRAS, (32, 16, 49408), strict=True):
        marked.__dict__.pop(name, None)
        marked.register_buffer(name, torch.tensor(value))
    return marked


def save_script(model: Any, path: Path, *, half_precision: bool = False) -> None:
    """Trace a model and save it as OpenAI did: a TorchScript archive."""
    words = torch.zeros(1, TEXT["context_length"], dtype=torch.int)
    traced = torch.jit.trace_module(
        as_openai(model), {"encode_image": (torch.ones(1, 3, 32, 32),), "encode_text": (words,)},
        check_trace=False)
    torch.jit.save(traced.half() if half_precision else traced, path)


def state_of(model: Any) -> dict[str, Any]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def save_hub_cache(folder: Path, source: Path) -> None:
    """What the hub's client leaves behind after it has fetched org/tiny-clip."""
    snapshot = folder / "models--org--tiny-clip" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, snapshot)
    refs = folder / "models--org--tiny-clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)


FORMS: dict[str, Callable[[Any, Path], None]] = {
    "weights.safetensors": lambda model, path: save_file(state_of(model), path),
    "weights.bin": lambda model, path: torch.save(model.state_dict(), path),
    "old.pth": lambda model, path: torch.save(
        model.state_dict(), path, _use_new_zipfile_serialization=False),
    "epoch_3.pt": lambda model, path: torch.save(
        {"epoch": 3, "name": "run", "state_dict": {
            f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, path),
    "ViT-T.pt": save_script,
    "openai_state.pt": lambda model, path: torch.save(as_openai(model).state_dict(), path),
    "openai.safetensors": lambda model, path: save_file(state_of(as_openai(model)), path),
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket, "create_connection", fail)


def pretend(monkeypatch: pytest.MonkeyPatch, transformers: Any) -> None:
    """Let the package transformers be found, or not."""
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: (
        transformers if name == "transformers" else found(name, *rest)))


@pytest.fixture
def with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, True)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_features(name: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    FORMS[name](model, path)
    clip = load_clip(QUICK, name, CPU, base=tmp_path)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = clip.vision.head.block(clip.vision(image).tokens)
        found = clip.vision.head.patch_embeddings(last[:, 0])
        wanted = model.encode_image(image, normalize=True)
        words = import_open_clip().get_tokenizer(QUICK)(["a dog"])
        said = model.encode_text(words, normalize=True)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(clip.encode_text(["a dog"]), said, atol=1e-6, rtol=1e-5)
    assert clip.identity["name"] == QUICK
    assert clip.identity["pretrained"] == name


def test_an_archives_tensors_are_those_of_torchs_own_reader(model: Any, tmp_path: Path) -> None:
    """In half precision, as OpenAI's are."""
    save_script(model, tmp_path / "ViT-T.pt", half_precision=True)
    found = recognise(tmp_path / "ViT-T.pt")
    assert (found.form, found.openai) == ("torchscript", True)
    wanted = torch.jit.load(str(tmp_path / "ViT-T.pt")).state_dict()
    tensors = read_weights(found)
    assert set(tensors) == set(wanted) - set(OPENAI_EXTRAS)
    for name, tensor in tensors.items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor, wanted[name])


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_no_code_of_a_file_is_run(model: Any, tmp_path: Path) -> None:
    """A checkpoint and an archive that would make a file, if they were unpickled plainly."""
    sprung = tmp_path / "sprung"
    content = {"state_dict": model.state_dict(), "trap": _Trap(sprung)}
    torch.save(content, tmp_path / "trap.pt")
    save_script(model, tmp_path / "good.pt")
    with (zipfile.ZipFile(tmp_path / "good.pt") as good,
          zipfile.ZipFile(tmp_path / "archive.pt", "w") as bad):
        for entry in good.namelist():
            trap = entry.endswith("/data.pkl")
            bad.writestr(entry, pickle.dumps(_Trap(sprung)) if trap else good.read(entry))
    for name in ("trap.pt", "archive.pt"):
        with pytest.raises(VplError, match="Python objects, which are not loaded") as caught:
            read_weights(recognise(tmp_path / name))
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 250
    assert not sprung.exists()
    pickle.loads(pickle.dumps(_Trap(sprung)))
    assert sprung.exists(), "the trap does not work"


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_cut(name: str) -> Callable[[Any, Path], None]:
    def save(model: Any, path: Path) -> None:
        FORMS[name](model, path)
        half(path)

    return save


def save_text(text: str) -> Callable[[Any, Path], None]:
    return lambda _model, path: (path.write_text(text), None)[1]


def save_arrays(_model: Any, path: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, weight=np.zeros(3))


NO_WEIGHTS: dict[str, tuple[str, str, Callable[[Any, Path], None]]] = {
    "empty": ("a.pt", "is empty", lambda _model, path: path.touch()),
    "web page": ("a.pt", "is a web page", save_text("<!DOCTYPE html>\n<html>404</html>")),
    "LFS pointer": ("a.safetensors", "Git LFS pointer", save_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:01ab\nsize 598597605\n")),
    "text": ("a.pt", "is text that begins `Not found`", save_text("Not found")),
    "JSON": ("a.bin", "is text that begins", save_text('{"error": "Entry not found"}')),
    "half a safetensors": ("a.safetensors", "is truncated", save_cut("weights.safetensors")),
    "safetensors' header alone": ("a.safetensors", "is truncated", lambda model, path: (
        FORMS["weights.safetensors"](model, path),
        path.write_bytes(path.read_bytes()[:200]), None)[2]),
    "half a checkpoint": ("a.bin", "is damaged or truncated", save_cut("weights.bin")),
    "half an archive": ("a.pt", "is damaged or truncated", save_cut("ViT-T.pt")),
    "NumPy": ("a.npz", "is a NumPy archive", save_arrays),
    "bytes": ("a.bin", "is in no known format of weights", lambda _model, path: (
        path.write_bytes(bytes(range(200, 256)) * 9), None)[1]),
}
"""File name, what is said, and how it is made; told from its first bytes."""


def test_a_safetensors_whose_length_begins_as_a_pickle_does(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for padding in range(0, 300, 8):
        save_file({"weight": torch.ones(2)}, path, {"note": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert torch.equal(read_weights(recognise(path))["weight"], torch.ones(2))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_scenes(tmp_path, draw_scenes(6))
    return tmp_path


def prepare(run: Run, base: Path, *options: object) -> Any:
    return run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", *options,
               work=base / "work")


def check_refused(result: Any, said: str) -> None:
    assert result.code == 1, result.err
    error, = result.lines("error:")
    assert said in error
    assert len(error) < 400
    assert len(result.lines("hint:")) == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_prepare_refuses_a_file_without_weights(case: str, base: Path, model: Any,
                                                run: Run) -> None:
    name, said, save = NO_WEIGHTS[case]
    save(model, base / name)
    result = prepare(run, base, "--model", "tiny", "--pretrained", base / name)
    check_refused(result, said)
    assert name in result.lines("error:")[0]
    assert not (base / "work").exists()


def other_clip(**vision: Any) -> Any:
    return import_open_clip().CLIP(EMBED_DIM, PLAIN_VISION | vision, TEXT)


OTHERS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "patch": ("`visual.conv1.weight` is 32×3×4×4, the model's 32×3×8×8",
              lambda: other_clip(patch_size=4, image_size=16).state_dict()),
    "grid": ("`visual.positional_embedding` is 65×32, the model's 17×32",
             lambda: other_clip(image_size=64).state_dict()),
    "depth": ("the model has no `visual.transformer.resblocks.3.",
              lambda: other_clip(layers=4).state_dict()),
    "depth less": ("it has no `visual.transformer.resblocks.2.",
                   lambda: other_clip(layers=2).state_dict()),
    "transformers": ("format of the package transformers",
                     lambda: {"vision_model.post_layernorm.weight": torch.ones(3)}),
    "no CLIP": ("it has no vision tower", lambda: {"blocks.0.weight": torch.ones(3)}),
    "text alone": ("it has no `visual.class_embedding`", lambda: {
        **{name: tensor for name, tensor in other_clip().state_dict().items()
           if not name.startswith("visual.")}, "visual.proj": torch.ones(32, EMBED_DIM)}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_weights_of_another_model_are_refused(case: str, base: Path, run: Run) -> None:
    said, state = OTHERS[case]
    save_file({name: tensor.contiguous() for name, tensor in state().items()},
              base / "a.safetensors")
    with pytest.raises(VplError) as caught:
        load_clip("tiny", "a.safetensors", CPU, base=base)
    assert said in caught.value.message
    # A text tower alone shows no shape of a vision tower.
    if case != "text alone":
        result = prepare(run, base, "--model", "tiny", "--pretrained", base / "a.safetensors")
        check_refused(result, "a.safetensors does not hold tiny: ")
        assert not (base / "work").exists()


def test_prepare_tells_the_model_that_a_file_is_of(base: Path, model: Any, run: Run) -> None:
    """The default model is an assumption, of which the file knows nothing."""
    save_file(state_of(model), base / "mine.safetensors")
    result = prepare(run, base, "--pretrained", base / "mine.safetensors")
    check_refused(result, "mine.safetensors does not hold ViT-B-16-quickgelu: its vision tower has "
                          "3 blocks, width 32, 17 positions, patch 8 and embedding 16, the model's "
                          "12, 768, 197, 16 and 512")
    assert "--model tiny" in result.lines("hint:")[0]
    assert not (base / "work").exists()


def test_the_model_that_a_file_is_of_is_named(tmp_path: Path, model: Any) -> None:
    save_file(state_of(model), tmp_path / "a.safetensors")
    with pytest.raises(VplError, match="does not hold ViT-S-32") as caught:
        load_clip("ViT-S-32", "a.safetensors", CPU, base=tmp_path)
    assert "--model tiny" in to_shell(caught.value.hint)


def test_a_damaged_middle_is_one_line(tmp_path: Path, model: Any) -> None:
    """The table of contents at the end is whole, the pickle is not."""
    torch.save(model.state_dict(), tmp_path / "good.bin")
    with (zipfile.ZipFile(tmp_path / "good.bin") as good,
          zipfile.ZipFile(tmp_path / "a.bin", "w") as bad):
        for entry in good.namelist():
            content = good.read(entry)
            bad.writestr(entry, content[:50] if entry.endswith("data.pkl") else content)
    with pytest.raises(VplError) as caught:
        read_weights(recognise(tmp_path / "a.bin"))
    assert "a.bin" in caught.value.message
    assert "\n" not in caught.value.message


# Folders and the hub


def save_folder(folder: Path, model: Any, *, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_file(state_of(model), folder / "open_clip_model.safetensors")
    (folder / CONFIG).write_text(json.dumps(config or {
        "model_cfg": CONFIGURATION | {"vision_cfg": PLAIN_VISION, "quick_gelu": True},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}))
    return folder


@pytest.mark.parametrize(("config", "said"), [
    ("{", "cannot be read as JSON"), ("{}", "has no model_cfg"), ("[]", "has no model_cfg"),
    (json.dumps({"model_cfg": {"embed_dim": 3}}), "has no model_cfg"),
    (json.dumps({"model_cfg": CONFIGURATION | {"vision_cfg": {"layers": [3, 4, 6, 3]}}}),
     "its tower is a ResNet"),
    (json.dumps({"model_cfg": CONFIGURATION | {"vision_cfg": {
        "timm_model_name": "convnext_base"}}}), "is a convolutional network"),
])
def test_prepare_refuses_a_folder_that_will_not_do(config: str, said: str, base: Path, model: Any,
                                                   run: Run) -> None:
    folder = save_folder(base / "clip", model)
    (folder / CONFIG).write_text(config)
    check_refused(prepare(run, base, "--pretrained", folder), said)
    assert not (base / "work").exists()


@pytest.mark.parametrize("missing", [CONFIG, "open_clip_model.safetensors"])
def test_prepare_refuses_half_a_folder(missing: str, base: Path, model: Any, run: Run) -> None:
    folder = save_folder(base / "clip", model)
    (folder / missing).unlink()
    check_refused(prepare(run, base, "--pretrained", folder), "clip has no ")


@pytest.mark.parametrize("how", ["--model", "--pretrained"])
def test_a_model_in_the_hubs_cache_needs_no_network(how: str, base: Path, model: Any, run: Run,
                                                    monkeypatch: pytest.MonkeyPatch,
                                                    no_network: None) -> None:
    save_hub_cache(base / "hub", save_folder(base / "clip", model))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(base / "hub"))
    assert prepare(run, base, how, "hf-hub:org/tiny-clip").code == 0
    described = json.loads((base / "work/workspace.json").read_text())
    assert (described["model"], described["pretrained"]) == ("tiny-clip", "hf-hub:org/tiny-clip")
    for command in (("text-prototypes", "--prompts", "single"), ("extract", "--workers", 0)):
        result = run(*command, work=base / "work")
        assert result.code == 0, result.err
    again = run("text-prototypes", "--prompts", "single", work=base / "work")
    assert "already exists" in again.err
    clip = load_clip("", "hf-hub:org/tiny-clip", CPU)
    assert clip.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("options", [
    ("--pretrained", "hf-hub:org/not-there"), ("--model", "hf-hub:org/not-there"),
    ("--model", "ViT-B-32", "--pretrained", "laion2b_s34b_b79k"),
    ("--model", "ViT-B-16-quickgelu", "--pretrained", "openai")])
def test_without_a_network_it_is_one_line_at_once(options: tuple[str, ...], base: Path, run: Run,
                                                  monkeypatch: pytest.MonkeyPatch,
                                                  no_network: None) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(base / "hub"))
    assert prepare(run, base, *options).code == 0
    started = time.monotonic()
    result = run("extract", "--workers", 0, work=base / "work")
    assert time.monotonic() - started < 8
    check_refused(result, "cannot download open_clip")
    hint, = result.lines("hint:")
    assert "https://" in hint
    assert "--pretrained F" in hint
    assert len(result.err.strip().splitlines()) == 2


class _Hub(http.server.SimpleHTTPRequestHandler):
    """Answers as the hub does: /org/NAME/resolve/main/FILE, with a commit, or an error's name."""

    def send_head(self) -> Any:
        name = self.path.rpartition("/")[2]
        path = Path(self.directory) / name
        if "/tiny-clip/" not in self.path or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/tiny-clip/" in self.path
                             else "RepoNotFound")
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("X-Repo-Commit", "b" * 40)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        return path.open("rb")

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine that has org/tiny-clip, whose files lie in the folder given."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Hub, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    at = f"http://127.0.0.1:{server.server_port}"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", at)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE",
                        at + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_from_the_hub(hub: Path, model: Any, tmp_path: Path) -> None:
    """Its weights are a .bin: the other names are asked for, and passed over."""
    hub.rmdir()
    save_folder(hub, model)
    (hub / "open_clip_model.safetensors").unlink()
    torch.save(model.state_dict(), hub / "open_clip_pytorch_model.bin")
    fetched = load_clip("", "hf-hub:org/tiny-clip", CPU)
    direct = load_clip("", str(hub), CPU)
    assert fetched.identity["fingerprint"] == direct.identity["fingerprint"]
    assert fetched.identity["pretrained"] == "hf-hub:org/tiny-clip"


@pytest.mark.parametrize(("name", "said"), [
    ("hf-hub:org/other", "cannot download open_clip_config.json of org/other"),
    ("hf-hub:org/tiny-clip", "org/tiny-clip on the hub has none of open_clip_config.json")])
def test_what_the_hub_does_not_have_is_named(name: str, said: str, hub: Path) -> None:
    with pytest.raises(VplError, match=said) as caught:
        load_clip("", name, CPU)
    # Tracebacks of the hub's client would bury it.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:tiny", "hf-hub:a/b/c", "hf-hub:/b"])
def test_a_name_that_is_none_on_the_hub(name: str, base: Path, run: Run) -> None:
    check_refused(prepare(run, base, "--pretrained", name), "is not a name on the hub")


# Names, and the trap of the activation


@pytest.mark.parametrize(("model_name", "tag", "said", "hint"), [
    ("ViT-B16", "openai", "no model `ViT-B16`", "did you mean `ViT-B-16`?"),
    ("ViT-B-16", "laion2b_s34b_b88", "`laion2b_s34b_b88`", "did you mean `laion2b_s34b_b88k`?"),
    ("ViT-B-16", "weights/none.pt", "no weights at", "a tag of open_clip"),
    ("RN50-quickgelu", "openai", "RN50-quickgelu cannot be used: its tower is a ResNet", "a ViT"),
    ("convnext_base", "laion400m_s13b_b51k", "is a convolutional network", "a ViT"),
    ("ViT-B-16", "openai", "ViT-B-16 has GELU", "--model ViT-B-16-quickgelu"),
    ("ViT-L-14", "dfn2b", "ViT-L-14 has GELU", "--model ViT-L-14-quickgelu"),
    ("ViT-H-14", "metaclip_fullcc", "ViT-H-14 has GELU", "--model ViT-H-14-quickgelu"),
    ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "ViT-B-16-quickgelu has QuickGELU",
     "--model ViT-B-16"),
    ("ViT-L-14-quickgelu", "datacomp_xl_s13b_b90k", "trained with GELU", "--model ViT-L-14"),
])
def test_prepare_refuses(model_name: str, tag: str, said: str, hint: str, base: Path,
                         run: Run) -> None:
    result = prepare(run, base, "--model", model_name, "--pretrained", tag)
    check_refused(result, said)
    assert hint in result.lines("hint:")[0]
    assert not (base / "work").exists()


@pytest.mark.parametrize(("model_name", "tag"), [
    ("ViT-B-16-quickgelu", "openai"), ("ViT-L-14-336-quickgelu", "openai"),
    ("ViT-B-16", "laion2b_s34b_b88k"), ("ViT-H-14", "laion2b-s32b-b79k"),
    ("ViT-H-14", "metaclip_altogether"), ("ViT-B-32-quickgelu", "laion400m_e32"),
    ("coca_ViT-L-14", "laion2b_s13b_b90k")])
def test_prepare_takes(model_name: str, tag: str, base: Path, run: Run) -> None:
    result = prepare(run, base, "--model", model_name, "--pretrained", tag)
    assert result.code == 0, result.err
    assert not result.lines("warning:")


def test_every_published_tag_is_taken_or_refused_for_a_reason(with_transformers: None) -> None:
    """A tag's activation is the model's, or the model is refused; none slips through."""
    open_clip = import_open_clip()
    taken = 0
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(name)
        entry = open_clip.get_pretrained_cfg(name, tag)
        try:
            check_source(find_source(name, tag))
        except VplError as error:
            assert error.hint
            continue
        assert bool(entry.get("quick_gelu")) == bool(config.get("quick_gelu")), (name, tag)
        taken += 1
    assert taken > 100


@pytest.mark.parametrize("form", ["ViT-T.pt", "openai_state.pt", "openai.safetensors"])
def test_openais_files_with_another_activation_are_refused(form: str, base: Path, model: Any,
                                                           run: Run) -> None:
    FORMS[form](model, base / form)
    result = prepare(run, base, "--model", "tiny", "--pretrained", base / form)
    check_refused(result, "tiny has GELU")
    assert f"--model {QUICK}" in result.lines("hint:")[0]
    assert prepare(run, base, "--model", QUICK, "--pretrained", base / form).code == 0


def test_openais_file_in_a_folder_that_says_otherwise(tmp_path: Path, model: Any) -> None:
    folder = save_folder(tmp_path / "clip", model, config={
        "model_cfg": CONFIGURATION | {"vision_cfg": PLAIN_VISION}})
    save_file(state_of(as_openai(model)), folder / "open_clip_model.safetensors")
    with pytest.raises(VplError, match="trained with QuickGELU") as caught:
        load_clip("", str(folder), CPU)
    assert "quick_gelu" in caught.value.hint


SAID_BY_NAME = [
    ("ViT-B-16", "ViT-B-16_dfn2b.safetensors", True),
    ("ViT-B-16", "b16_400m.pt", True),
    ("ViT-B-16", "ViT-B-16.safetensors", None),
    ("ViT-B-16", "ViT-B-16-openai.bin", True),
    ("ViT-L-14", "ViT-L-14-dfn2b-s39b.bin", False),
    ("ViT-B-16-quickgelu", "laion2b_s34b_b88k.bin", False),
    ("ViT-B-16-quickgelu", "CLIP-ViT-B-16-laion2B-s34B-b88K/open_clip_pytorch_model.bin", False),
    ("ViT-B-16", "models--timm--vit_base_patch16_clip_224.openai/snapshots/ab/"
                 "open_clip_model.safetensors", True),
]
"""Model, file, and whether its name tells of QuickGELU; None: it tells nothing."""


@pytest.mark.parametrize(("model_name", "file", "quick"), SAID_BY_NAME)
def test_a_files_name_tells_its_activation(model_name: str, file: str, quick: bool | None,
                                           tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"visual.proj": torch.ones(2, 2)}, path)
    source = find_source(model_name, file, tmp_path)
    if quick is None:
        assert len(check_source(source)) == 1
    elif quick == model_name.endswith("quickgelu"):
        assert check_source(source) == []
    else:
        with pytest.raises(VplError, match="would silently give worse features") as caught:
            check_source(source)
        assert "--model" in to_shell(caught.value.hint)


def test_what_a_file_does_not_tell_is_said(base: Path, model: Any, run: Run) -> None:
    save_file(state_of(model), base / "mine.safetensors")
    result = prepare(run, base, "--model", QUICK, "--pretrained", base / "mine.safetensors")
    assert result.code == 0
    warning, = result.lines("warning:")
    assert "mine.safetensors" in warning
    assert f"QuickGELU, as {QUICK} says" in warning


def test_the_whole_chain_runs_on_a_tower_without_class_token(tmp_path: Path) -> None:
    """SigLIP's, made small: text, features, CAMs by gradient and dense, masks, a decoder."""
    open_clip = import_open_clip()
    timm = open_clip.timm_model.timm
    small = functools.partial(timm.create_model, depth=3, embed_dim=32, num_heads=4, img_size=32)
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
              "timm_proj": "none", "image_size": 32}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True,
              "init_logit_bias": -10}
    write_scenes(tmp_path, draw_scenes())
    with mock.patch.object(timm, "create_model", small):
        torch.manual_seed(4)
        built = open_clip.model.CustomTextCLIP(
            **{key: value for key, value in config.items() if key != "custom_text"})
        with torch.no_grad():
            built.text.token_embedding.weight.normal_()
        save_folder(tmp_path / "clip", built, config={
            "model_cfg": config, "preprocess_cfg": {"mean": HALF, "std": HALF}})
        assert prepare_clip(tmp_path).code == 0
        run_chain(tmp_path, (*CHAIN, ("cam", "--method", "dense"), ("cam", "--method", "salient"),
                             (*TRAIN, "--name", "tiny", "--source", "photos")))
    features = read_tensors(tmp_path / "work/features/train/scene0.safetensors", "features")[1]
    assert len(features["tokens"]) == len(features["patches"]) == features["grid"].prod()
    for name in ("text", "text-dense", "text-refined"):
        maps = read_tensors(tmp_path / f"work/cams/{name}/train/scene3.safetensors", "cams")[1]
        assert maps["cam"].isfinite().all()
        assert float(maps["cam"].float().flatten(1).std(dim=1).max()) > 0


def test_a_coca_with_its_own_text_tower(tmp_path: Path) -> None:
    """Its words and its tokens are open_clip's."""
    open_clip = import_open_clip()
    multimodal = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": EMBED_DIM, "multimodal_cfg": multimodal, "custom_text": True,
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "vision_cfg": PLAIN_VISION | {"attentional_pool": True, "attn_pooler_heads": 8,
                                      "output_tokens": True}}
    torch.manual_seed(6)
    built = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
    folder = save_folder(tmp_path / "coca", built.eval(), config={"model_cfg": config})
    clip = load_clip("", str(folder), CPU)
    words = open_clip.get_tokenizer(f"local-dir:{folder}")(["a bus"])
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(["a bus"]),
                                   built.encode_text(words, normalize=True), atol=1e-6, rtol=1e-5)
        last = clip.vision.head.block(clip.vision(image).tokens)
        pooled = built.visual._pool(last)[0] @ built.visual.proj
        torch.testing.assert_close(pooled, built.visual(image)[0], atol=1e-5, rtol=1e-5)


HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("model_name", "file", "mean"), [
    ("ViT-L-14", "ViT-L-14_laion2b_s32b_b82k.bin", HALF),
    ("ViT-L-14", "ViT-L-14_laion400m_e32.bin", None),
    ("ViT-B-16-SigLIP", "any.bin", HALF), ("ViT-L-14-CLIPA", "any.bin", (0.485, 0.456, 0.406)),
    ("ViT-B-16", "any.bin", None)])
def test_the_colours_of_a_file(model_name: str, file: str, mean: Any, tmp_path: Path,
                               with_transformers: None) -> None:
    """Some were trained on colours normalised otherwise than OpenAI's."""
    save_file({"visual.proj": torch.ones(2, 2)}, tmp_path / file)
    open_clip = import_open_clip()
    source = find_source(model_name, file, tmp_path)
    _, _, colours = catalogue.locate(source)
    assert colours.get("mean", open_clip.OPENAI_DATASET_MEAN) == (
        mean or open_clip.OPENAI_DATASET_MEAN)


def test_a_word_reader_that_is_not_installed_is_named(base: Path, run: Run,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    result = prepare(run, base, "--model", "ViT-B-16-SigLIP", "--pretrained", "webli")
    check_refused(result, "needs the package transformers")
    assert "pip install transformers" in result.lines("hint:")[0]


@pytest.mark.parametrize(("options", "code"), [
    ((), 0), (("--model", "ViT-B16"), 1), (("--model", "RN50"), 1),
    (("--pretrained", "hf-hub:org/name"), 0)])
def test_prepare_loads_nothing_heavy_for_what_names_tell(options: tuple[str, ...], code: int,
                                                         base: Path) -> None:
    script = f"""
import sys
sys.argv = ["vpltool", "-C", {str(base / "work")!r}, "prepare", "folder", {str(base / "photos")!r},
            "--labels", {str(base / "tags.csv")!r}, *{options!r}]
from vpltool.cli import main
stopped = 0
try:
    main()
except SystemExit as stop:
    stopped = stop.code or 0
assert stopped == {code}
print("LOADED", sorted({{"torch", "open_clip", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
