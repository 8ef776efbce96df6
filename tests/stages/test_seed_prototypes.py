"""`seed-prototypes` through the command line: methods, refusals, what is said, bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, Run
from torch import Tensor

from vpltool.formats import describe, read_tensors, write_tensors

SEEDED = ("--cams", "text", "--phi", "0.6", "--phi-background", "0.3")


def seed(run: Run, work: Path, out: Path, *options: object) -> tuple[Tensor, list[int]]:
    """Run the command, with its result elsewhere: rows, class of each."""
    result = run("seed-prototypes", *SEEDED, *options, "--out", out, work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out)]
    _, tensors = read_tensors(out, "prototypes")
    return tensors["prototypes"], tensors["class_index"].tolist()


def seeds_of(work: Path, cams: str = "text", phi: float = 0.6, low: float = 0.3
             ) -> dict[int, Tensor]:
    """Class, 0 for the background, to its patches, by loops over photos and patches."""
    found: dict[int, list[Tensor]] = {}
    for path in sorted((work / "features/train").glob("scene*")):
        patches = read_tensors(path, "features")[1]["patches"].float()
        cam = read_tensors(work / f"cams/{cams}/train" / path.name, "cams")[1]
        for patch, scores in zip(patches, cam["cam"].flatten(1).T.float(), strict=True):
            if scores.max() < low:
                found.setdefault(0, []).append(F.normalize(patch, dim=0))
            elif scores.max() >= phi:
                owner = int(cam["classes"][scores.argmax()])
                found.setdefault(owner, []).append(F.normalize(patch, dim=0))
    return {owner: torch.stack(parts) for owner, parts in found.items()}


def text_of(work: Path) -> tuple[Tensor, list[int]]:
    _, tensors = read_tensors(work / "prototypes/text.safetensors", "prototypes")
    return tensors["prototypes"], tensors["class_index"].tolist()


def test_means_are_those_of_plain_loops(run: Run, ready: Path, tmp_path: Path) -> None:
    work = ready / "work"
    rows, owners = seed(run, work, tmp_path / "s.safetensors")
    text, text_index = text_of(work)
    seeds = seeds_of(work)
    assert owners == text_index
    assert {1, 2, 3} & set(seeds)
    for row, owner, word in zip(rows, owners, text, strict=True):
        if owner in seeds and owner:
            wanted = F.normalize(seeds[owner].mean(dim=0), dim=0)
            torch.testing.assert_close(row, wanted, atol=2e-3, rtol=0)
        else:
            assert torch.equal(row, word), "the background's words, and classes without seeds"


def test_background_clusters_lie_among_the_background(run: Run, ready: Path, tmp_path: Path
                                                      ) -> None:
    rows, owners = seed(run, ready / "work", tmp_path / "s.safetensors", "--background", "clusters",
                        "--clusters", 3)
    assert owners == [1, 2, 3, 0, 0, 0]
    behind = seeds_of(ready / "work")[0]
    assert set((behind @ rows[3:].T).argmax(dim=1).tolist()) == {0, 1, 2}
    plain, _ = seed(run, ready / "work", tmp_path / "words.safetensors")
    assert torch.equal(rows[:3], plain[:3])


def test_several_a_class_share_its_seeds(run: Run, ready: Path, tmp_path: Path) -> None:
    rows, owners = seed(run, ready / "work", tmp_path / "s.safetensors", "--method", "kmeans",
                        "--per-class", 2)
    plain, words = text_of(ready / "work")
    seeds = seeds_of(ready / "work")
    assert [owners.count(owner) for owner in (1, 2, 3)] == [
        min(2, len(seeds.get(owner, [0]))) for owner in (1, 2, 3)]
    assert owners.count(0) == words.count(0)
    assert torch.equal(rows[-words.count(0):], plain[-words.count(0):])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-4, rtol=0)
    for owner in {1, 2, 3} & set(seeds):
        mine = rows[[row for row, other in enumerate(owners) if other == owner]]
        mean = F.normalize(seeds[owner].mean(dim=0), dim=0)
        nearest = (seeds[owner] @ mine.T).amax(dim=1).mean()
        assert float(nearest) >= float((seeds[owner] @ mean).mean()) - 1e-3


def test_header_and_facts(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    seed(run, ready / "work", out, "--background", "clusters", "--clusters", 2)
    header = describe(out).header
    assert header is not None
    assert set(header.inputs) == {"features", "text", "tags", "cams", "photos", "photo-files"}
    assert header.sources["cams"] == "cams/text/train"
    assert {name: header.options[name] for name in ("cams", "text", "method", "background")} == {
        "cams": "text", "text": "text", "method": "means", "background": "clusters"}
    assert header.facts["space"] == "vision"
    assert header.facts["rows"] == [*SHAPES, "background", "background"]
    assert header.facts["gap"]["vision"]["cosine"] < header.facts["gap"]["text"]["cosine"]


def test_refined_maps_are_preferred_and_said(run: Run, ready: Path, tmp_path: Path) -> None:
    """Not those of vision prototypes, which come from seeds themselves."""
    out = tmp_path / "s.safetensors"
    assert run("seed-prototypes", "--out", out, work=ready / "work").code == 0
    header = describe(out).header
    assert header is not None
    assert (header.options["cams"], header.options["phi"], header.options["phi_background"]) == (
        "text-refined", 0.4, 0.15)


def test_they_serve_cam_and_learning(run: Run, copied: Path) -> None:
    """The default path is that of the name `seeds`."""
    work = copied / "work"
    made = run("seed-prototypes", *SEEDED, "--background", "clusters", work=work)
    assert made.out.splitlines() == [str(work / "prototypes/seeds.safetensors")]
    for command in (("cam", "--prototypes", "seeds", "--method", "dense"),
                    ("learn-prototypes", "--pixels", "seeds", "--start", "seeds", "--iters", 2,
                     *SEEDED)):
        result = run(*command, work=work)
        assert result.code == 0, result.err


@pytest.mark.parametrize(("options", "given"), [
    (("--clusters", "5"), "--clusters 5 has no effect with --background words: there is a row for "
                          "each word"),
    (("--pixels", "regions"), "--phi 0.6 has no effect with --pixels regions: regions need no "
                              "threshold")])
def test_what_has_no_effect_is_said(options: tuple[str, ...], given: str, run: Run, ready: Path,
                                    tmp_path: Path) -> None:
    result = run("seed-prototypes", *SEEDED, *options, "--out", tmp_path / "s.safetensors",
                 work=ready / "work")
    assert result.code == 0, result.err
    assert given in result.lines("warning:")


def test_a_class_without_seeds_keeps_its_text(run: Run, copied: Path) -> None:
    """Where no photo shows it; the warning names it."""
    work = copied / "work"
    listing = work / "images.jsonl"
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    rest = [line for line in lines if "disc" not in line["labels"]]
    assert 0 < len(rest) < len(lines)
    listing.write_text("".join(json.dumps(line) + "\n" for line in rest))
    result = run("seed-prototypes", *SEEDED, "--phi", 0, "--phi-background", 0, work=work)
    assert result.code == 0, result.err
    assert "no seeds for disc: the start's prototype is kept" in result.lines("warning:")
    _, tensors = read_tensors(work / "prototypes/seeds.safetensors", "prototypes")
    text, index = text_of(work)
    assert torch.equal(tensors["prototypes"][index.index(3)], text[index.index(3)])


REFUSED: dict[str, tuple[tuple[object, ...], str, str]] = {
    "no such CAMs": (("--cams", "tex"), "tex", "cams/text"),
    "no such text": (("--text", "vision"), "vision", "vpltool learn-prototypes"),
    "no background": (("--phi", 0, "--phi-background", 0, "--background", "clusters"),
                      "--background clusters: no pixel is background", "--phi-background 0.5"),
    "no split": (("--split", "tset"), "tset", "train"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, run: Run, ready: Path, tmp_path: Path) -> None:
    options, said, hint = REFUSED[name]
    out = tmp_path / "s.safetensors"
    result = run("seed-prototypes", *SEEDED, *options, "--out", out, work=ready / "work")
    assert result.code == 1, result.err
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert not out.exists()


@pytest.mark.parametrize("words", [
    ("--pixels", "all"), ("--background", "word"), ("--method", "kmean"), ("--per-class", "2"),
    ("--method", "kmeans", "--per-class", "0")])
def test_usage_errors(words: tuple[str, ...], run: Run, ready: Path) -> None:
    result = run("seed-prototypes", *words, work=ready / "work")
    assert result.code == 2, result.err


def test_of_text_only(run: Run, copied: Path) -> None:
    """Vision prototypes are no text: rows without seeds would be theirs."""
    work = copied / "work"
    assert run("seed-prototypes", *SEEDED, work=work).code == 0
    result = run("seed-prototypes", *SEEDED, "--text", "seeds", "--out", work / "x.safetensors",
                 work=work)
    assert result.code == 1
    assert result.lines("error:") == [
        f"{work}/prototypes/seeds.safetensors holds vision prototypes, and text prototypes are "
        "needed"]


def test_a_second_run_does_no_work(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("seed-prototypes", *SEEDED, "--method", "kmeans")
    path = copied / "work/prototypes/seeds.safetensors"
    first = run(*options, work=copied / "work")
    assert first.code == 0, first.err
    before = (path.read_bytes(), path.stat().st_mtime_ns)

    def never(*_args: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("vpltool.stages._phase_one.gather", never)
        second = run(*options, work=copied / "work")
        assert second.code == 0, second.err
        assert second.out == first.out
        refused = run(*options, "--per-class", 2, work=copied / "work")
    assert refused.code == 1
    assert "per_class was 4, now 2" in refused.lines("error:")[0]
    assert "--overwrite" in refused.lines("hint:")[0]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize("options", [
    ("--background", "clusters", "--clusters", 3), ("--method", "kmeans", "--per-class", 2)])
def test_same_seed_same_bytes(options: tuple[object, ...], run: Run, ready: Path, tmp_path: Path
                              ) -> None:
    digests = []
    for out, start in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)
        path = tmp_path / f"{out}.safetensors"
        seed(run, ready / "work", path, *options, "--max-pixels", 60, "--seed", start)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


BASES: dict[str, tuple[tuple[object, ...], list[tuple[object, ...]]]] = {
    "words": ((), [("--phi", "0.9"), ("--cams", "text-refined"), ("--pixels", "regions"),
                   ("--max-pixels", 30), ("--limit", 3), ("--method", "kmeans"),
                   ("--method", "kmeans", "--per-class", 2)]),
    "clusters": (("--background", "clusters", "--clusters", 3), [
        ("--phi-background", "0.1"), ("--clusters", 2), ("--seed", 4),
        ("--background", "words")]),
}


@pytest.mark.parametrize("base", BASES)
def test_every_option_makes_a_difference(base: str, run: Run, ready: Path, tmp_path: Path) -> None:
    common, variants = BASES[base]
    found: dict[bytes, tuple[object, ...]] = {}
    for number, options in enumerate([(), *variants]):
        rows, _ = seed(run, ready / "work", tmp_path / f"{number}.safetensors", *common, *options)
        content = rows.numpy().tobytes()
        assert content not in found, f"{options} is the same as {found[content]}"
        found[content] = options


MEDIAN = '''"""The median of each class's seeds; a method of a test's own."""

from dataclasses import dataclass

from vpltool import settings

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the median."""

    sign: int = settings.setting(1, "Multiplies the medians.")


def estimate(pool, text, text_index, settings, seed):
    import torch
    import torch.nn.functional as F

    rows = text.clone()
    for row, owner in enumerate(text_index.tolist()):
        mine = pool.embeddings[pool.labels == owner]
        if owner and len(mine):
            rows[row] = F.normalize(settings.sign * mine.float().median(dim=0).values, dim=0)
    return rows, text_index
'''


def test_a_file_is_a_method(run: Run, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                            ) -> None:
    """A file in a folder of one's own gives prototypes, options included."""
    folder = tmp_path / "own/estimators"
    folder.mkdir(parents=True)
    (folder / "median.py").write_text(MEDIAN)
    monkeypatch.setenv("VPLTOOL_METHODS", str(tmp_path / "own"))
    found = [seed(run, ready / "work", tmp_path / f"{sign}.safetensors", "--method", "median",
                  "--sign", sign)[0] for sign in (1, -1)]
    _, index = text_of(ready / "work")
    for owner in {1, 2, 3} & set(seeds_of(ready / "work")):
        torch.testing.assert_close(found[0][index.index(owner)], -found[1][index.index(owner)])


def test_a_typo_in_the_name_of_prototypes(run: Run, copied: Path) -> None:
    """`visoin` is `vision`, not something that text-prototypes makes."""
    work = copied / "work"
    refused = run("cam", "--prototypes", "visoin", work=work)
    assert refused.code == 1
    assert "visoin" in refused.lines("error:")[0]
    assert refused.lines("hint:") == ["did you mean `vision`? vpltool learn-prototypes makes it"]
    header, tensors = read_tensors(work / "prototypes/text.safetensors", "prototypes")
    write_tensors(work / "prototypes/vision.safetensors", header, tensors)
    refused = run("cam", "--prototypes", "visoin", work=work)
    assert refused.lines("hint:") == ["did you mean `vision`?"]
    refused = run("cam", "--prototypes", "seeds", work=work)
    assert refused.lines("hint:") == ["vpltool seed-prototypes"]
    assert not (work / "cams/visoin").exists()
