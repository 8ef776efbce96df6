"""A model's folder is data: none of its Python runs, wherever its files ask for that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, draw_scenes, prepare, save_clip, write_scenes

from vpltool.clip.catalogue import import_open_clip
from vpltool.errors import VplError

pytest.importorskip("transformers")

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_scenes(tmp_path, draw_scenes(3))
    return tmp_path


def make_clip(base: Path, *, kwargs: dict[str, Any] | None = None, **text: Any) -> Path:
    """A CLIP whose tokenizer is a class in its own folder."""
    folder = save_clip(base / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "evil/evil", **text}
    if kwargs is not None:
        config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = kwargs
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE.format(mark=str(base / "mark")))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}))
    return folder


@pytest.mark.parametrize(("kwargs", "text"), [
    ({"trust_remote_code": True}, {}), ({"more": [{"trust_remote_code": 1}]}, {}),
    (None, {"trust_remote_code": True})])
def test_a_configuration_that_asks_for_code_is_refused(base: Path, kwargs: dict[str, Any] | None,
                                                       text: dict[str, Any]) -> None:
    """Row 42, before a workspace is made."""
    make_clip(base, kwargs=kwargs, **text)
    result = prepare(base)
    assert result.code == 1
    assert "trust_remote_code" in result.lines("error:")[0]
    assert not (base / "mark").exists() and not (base / "work/workspace.json").exists()


def test_a_tokenizer_class_in_the_folder_is_not_run(base: Path, run: Run,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto_map` alone: transformers would ask, and a person may say yes."""
    make_clip(base)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert prepare(base).code == 0
    result = run("text-prototypes", "--prompts", "single", work=base / "work")
    assert result.code == 1
    assert len(result.lines("error:")) == 1 and "tokenizer" in result.lines("error:")[0]
    assert not (base / "mark").exists()


@pytest.mark.parametrize("auto", ["AutoTokenizer", "AutoConfig"])
def test_nothing_else_leads_to_its_code(base: Path, auto: str) -> None:
    """A way past our checks, such as a repository that changes between two requests."""
    folder = make_clip(base)
    import_open_clip()
    with pytest.raises(VplError, match="Python of its own"):
        getattr(sys.modules["transformers"], auto).from_pretrained(
            str(folder), trust_remote_code=True)
    assert not (base / "mark").exists()


def test_a_text_tower_of_transformers_is_not_run(base: Path, run: Run) -> None:
    folder = make_clip(base)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": str(folder), "hf_tokenizer_name": "x"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    prepare(base)
    result = run("text-prototypes", "--prompts", "single", work=base / "work")
    assert result.code == 1
    assert len(result.lines("error:")) == 1
    assert not (base / "mark").exists()
