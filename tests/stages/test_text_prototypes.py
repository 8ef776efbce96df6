"""`text-prototypes` through the command line: words, what is stale, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES, Run
from torch import Tensor

from vpltool.formats import describe, read_tensors


def made(work: Path) -> tuple[Tensor, dict[str, Any]]:
    path = work / "prototypes/text.safetensors"
    header = describe(path).header
    assert header is not None
    return read_tensors(path, "prototypes")[1]["prototypes"], header.facts


def test_own_words_change_their_class_only(run: Run, copied: Path) -> None:
    work, words = copied / "work", copied / "words.txt"
    before, facts = made(work)
    assert facts["words"] == list(SHAPES)
    words.write_text("disc: a round disc\n")
    result = run("text-prototypes", "--prompts", "single", "--words", words, "--overwrite",
                 work=work)
    assert result.code == 0, result.err
    after, facts = made(work)
    assert facts["words"] == ["bar", "box", "a round disc"]
    changed = (before != after).any(dim=1).tolist()
    assert changed == [False, False, True, *[False] * (len(before) - 3)]


def test_edited_words_are_seen(run: Run, copied: Path) -> None:
    """The same settings, but other words in the file: refused, and made again by --update."""
    work, words = copied / "work", copied / "words.txt"
    command = ("text-prototypes", "--prompts", "single", "--words", words)
    words.write_text("disc: a round disc\n")
    assert run(*command, "--overwrite", work=work).code == 0
    assert "already exists" in run(*command, work=work).err
    before, _ = made(work)
    words.write_text("disc: a plate\n")
    refused = run(*command, work=work)
    assert refused.code == 1
    assert "words.txt has changed" in refused.lines("error:")[0]
    assert torch.equal(made(work)[0], before)
    assert run(*command, "--update", work=work).code == 0
    assert made(work)[1]["words"][2] == "a plate"


def test_a_new_class_is_said(run: Run, copied: Path) -> None:
    """Not in hashes, and not as other settings of the same command."""
    work = copied / "work"
    description = work / "workspace.json"
    content = json.loads(description.read_text())
    content["classes"].append("star")
    description.write_text(json.dumps(content))
    refused = run("text-prototypes", "--prompts", "single", work=work)
    assert refused.code == 1
    assert "the classes have changed" in refused.lines("error:")[0]
    assert "update" in refused.lines("hint:")[0]
    assert run("text-prototypes", "--prompts", "single", "--update", work=work).code == 0
    assert made(work)[1]["words"] == [*SHAPES, "star"]


@pytest.mark.parametrize(("line", "said", "hint"), [
    ("disk: a disc", "`disk` is not a class", "did you mean `disc`?"),
    ("disc a disc", "is not CLASS: WORDS", "person: a person"),
    ("", "is empty", "person: a person")])
def test_refused_words(line: str, said: str, hint: str, run: Run, copied: Path) -> None:
    words = copied / "words.txt"
    words.write_text(line + "\n")
    before, _ = made(copied / "work")
    result = run("text-prototypes", "--words", words, "--overwrite", work=copied / "work")
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert torch.equal(made(copied / "work")[0], before)


def test_refused_prompts(run: Run, copied: Path) -> None:
    result = run("text-prototypes", "--prompts", "assemble", work=copied / "work")
    assert result.code == 1
    assert "assemble" in result.lines("error:")[0]
    assert "ensemble" in result.lines("hint:")[0]


DESCRIBED = {"bar": ["a long thin bar", "a blue line"], "disc": ["a round plate", "a red wheel"],
             "box": ["a green cube"]}


def test_attributes_change_classes_only(run: Run, copied: Path) -> None:
    work, file = copied / "work", copied / "attributes.json"
    before, _ = made(work)
    file.write_text(json.dumps(DESCRIBED))
    command = ("text-prototypes", "--prompts", "single", "--attributes", file,
               "--attribute-clusters", 3)
    result = run(*command, "--overwrite", work=work)
    assert result.code == 0, result.err
    assert "5 descriptions in 3 attributes" in result.err
    assert not result.lines("warning:")
    after, _ = made(work)
    assert (before != after).any(dim=1).tolist() == [*[True] * 3, *[False] * (len(before) - 3)]
    torch.testing.assert_close(after.norm(dim=-1), torch.ones(len(after)))
    header = describe(work / "prototypes/text.safetensors").header
    assert header is not None
    assert header.options["attribute_clusters"] == 3
    assert header.sources["attributes"] == "../attributes.json"
    assert "already exists" in run(*command, work=work).err
    file.write_text(json.dumps(DESCRIBED | {"box": ["a crate"]}))
    refused = run(*command, work=work)
    assert refused.code == 1
    assert "attributes.json has changed" in refused.lines("error:")[0]
    assert run("status", "--stale", work=work).out.startswith("stale")
    assert run("update", work=work).code == 0
    assert (made(work)[0][:3] != after[:3]).any(dim=1).all()


def test_what_is_not_described_is_told(run: Run, copied: Path) -> None:
    file = copied / "attributes.json"
    file.write_text(json.dumps({"disc": ["a plate"]}))
    result = run("text-prototypes", "--attributes", file, "--overwrite", work=copied / "work")
    assert result.code == 0, result.err
    assert result.lines("warning:") == [f"{file} does not describe bar, box"]


def test_attribute_settings_without_attributes(run: Run, copied: Path) -> None:
    """They are told, and not recorded."""
    result = run("text-prototypes", "--prompts", "single", "--attribute-share", 0.5,
                 work=copied / "work")
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        "--attribute-share 0.5 has no effect: there are no descriptions"]
    assert "already exists" in result.err


@pytest.mark.parametrize(("text", "said", "hint"), [
    ('{"disk": ["a disc"]}', "`disk` is not a class", "did you mean `disc`?"),
    ('{"disc": "a disc"}', "`disc` has no list of descriptions", "for example"),
    ('{"disc": {"a": "disc"}}', "`disc` has no list of descriptions", "for example"),
    ('{"disc": []}', "`disc` has no descriptions", "leave the class out"),
    ('{"bar": ["a"], "disc": ["a", 3]}', "description 2 of `disc` is not a text: 3", "for example"),
    ('{"disc": [" "]}', 'description 1 of `disc` is not a text: " "', "for example"),
    ('{"disc": ["a"], "disc": ["b"]}', "`disc` occurs twice", "one list"),
    ("[]", "is not a JSON object", "for example"), ("{}", "is not a JSON object", "for example"),
    ('{"disc"', "cannot read", "for example"), (None, "cannot read", "for example")])
def test_refused_attributes(text: str | None, said: str, hint: str, run: Run, copied: Path
                            ) -> None:
    file = copied / "attributes.json"
    if text is not None:
        file.write_text(text)
    before, _ = made(copied / "work")
    result = run("text-prototypes", "--attributes", file, "--overwrite", work=copied / "work")
    assert result.code == 1
    assert said in result.lines("error:")[0] and str(file) in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert torch.equal(made(copied / "work")[0], before)
