"""`learn-prototypes` through the command line: readings, refusals, facts, bytes."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES, Run, copy_workspace
from torch import Tensor

from vpltool.formats import describe, read_tensors, write_tensors
from vpltool.settings import described
from vpltool.stages.learn_prototypes import LearnPrototypesSettings

QUICK = ("--iters", 6)
"""No later option of the same name: the last one counts."""

SEEDED = ("--pixels", "seeds", "--phi", "0.6", "--phi-background", "0.3")


STARTS: dict[str, tuple[object, ...]] = {
    "seeds": (*SEEDED,),
    "clusters": (*SEEDED, "--background", "clusters", "--clusters", 3),
    "kmeans": (*SEEDED, "--method", "kmeans", "--per-class", 2),
    "regions": ("--pixels", "regions", "--background", "clusters", "--clusters", 2),
}
"""What seed-prototypes makes for the tests: NAME to options."""


@pytest.fixture(scope="module")
def seeded(run: Run, ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path
           ) -> Path:
    """The workspace of `ready`, with the prototypes of `STARTS`. Read only."""
    work = copy_workspace(ready, tmp_path_factory.mktemp("seeded") / "base", tiny_clip) / "work"
    for name, options in STARTS.items():
        result = run("seed-prototypes", *options, "--out", work / f"prototypes/{name}.safetensors",
                     work=work)
        assert result.code == 0, result.err
    return work


def learn(run: Run, work: Path, out: Path, *options: object) -> tuple[dict[str, Any], Tensor, Any]:
    """Run the command, with its result elsewhere: header, rows, class index."""
    result = run("learn-prototypes", *QUICK, *options, "--out", out, work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out)]
    header, tensors = read_tensors(out, "prototypes")
    steps = header.options["iters"] * header.options.get("rounds", 1)
    if header.options.get("solver") == "pgd" and steps:
        assert f"learn-prototypes (pgd): {steps} in " in result.err
    return {"options": header.options, **header.facts}, tensors["prototypes"], tensors[
        "class_index"]


def text_of(work: Path) -> tuple[Tensor, list[int]]:
    _, tensors = read_tensors(work / "prototypes/text.safetensors", "prototypes")
    return tensors["prototypes"], tensors["class_index"].tolist()


READINGS: dict[str, tuple[object, ...]] = {
    "default": (),
    "literal": ("--classes", "all"),
    "present student": ("--student", "present"),
    "hardened": ("--harden", "0.4"),
    "lbfgs": ("--solver", "lbfgs"),
    "rounds": ("--rounds", 3),
    "seeds": (*SEEDED,),
    "seeds guided by text": (*SEEDED, "--targets", "text", "--harden", "0.3"),
    "seeds as start": (*SEEDED, "--start", "seeds", "--balance"),
    "from seeds by text": (*SEEDED, "--start", "seeds", "--targets", "text"),
    "all pixels, from seeds": ("--start", "seeds"),
    "clusters": (*SEEDED, "--start", "clusters"),
    "clusters, present student": (*SEEDED, "--start", "clusters", "--solver", "lbfgs",
                                  "--student", "present"),
    "several a class": (*SEEDED, "--start", "kmeans", "--rounds", 2),
    "regions": ("--pixels", "regions"),
    "regions guided by text": ("--pixels", "regions", "--targets", "text", "--solver", "lbfgs"),
    "regions, clusters": ("--pixels", "regions", "--start", "regions", "--balance"),
    "not learned": (*SEEDED, "--start", "seeds", "--iters", 0),
    "raw CAMs": (*SEEDED, "--cams", "text"),
    "another seed and temperatures": ("--seed", 3, "--tau-i", "0.1", "--tau-t", "0.05"),
}


@pytest.mark.parametrize("name", READINGS)
def test_reading(name: str, run: Run, seeded: Path, tmp_path: Path) -> None:
    """Each runs, gives unit rows for every class and the background, and says what it did."""
    options = READINGS[name]
    facts, rows, index = learn(run, seeded, tmp_path / "v.safetensors", *options)
    text, text_index = text_of(seeded)
    owners = index.tolist()
    start = options[options.index("--start") + 1] if "--start" in options else "text"
    assert set(owners) == {0, 1, 2, 3}
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-4, rtol=0)
    assert facts["space"] == "vision"
    assert facts["rows"] == [["background", *SHAPES][owner] for owner in owners]
    for space in ("text", "vision"):
        assert set(facts["gap"][space]) == {"cosine", "centroid"}
        assert all(0 <= value <= 2 for value in facts["gap"][space].values())
    assert owners.count(0) == {"clusters": 3, "regions": 2}.get(str(start), text_index.count(0))
    most = 2 if start == "kmeans" else 1
    assert all(1 <= owners.count(owner) <= most for owner in (1, 2, 3))
    course = facts["course"]
    if "--iters" in options:
        assert course == []
    else:
        assert all(len(entry) == 4 and all(map(math.isfinite, entry)) for entry in course)
        assert all(entry[1] > -1e-4 for entry in course), "a Kullback-Leibler distance is not < 0"
    assert rows.shape != text.shape or not torch.equal(rows, text)


# L-BFGS to the very end fits so few patches so well that the gap grows again.
@pytest.mark.parametrize(("solver", "steps"), [("pgd", 400), ("lbfgs", 60)])
def test_the_literal_objective_falls(solver: str, steps: int, run: Run, ready: Path,
                                     tmp_path: Path) -> None:
    facts, *_ = learn(run, ready / "work", tmp_path / "v.safetensors", "--classes", "all",
                      "--solver", solver, "--iters", steps)
    first, last = facts["course"][0][1], facts["course"][-1][1]
    assert last < 0.9 * first
    assert facts["gap"]["vision"]["cosine"] < facts["gap"]["text"]["cosine"]


@pytest.mark.parametrize(("rate", "rises"), [(0.01, False), (1, True)])
def test_an_objective_that_rose_is_told(rate: float, rises: bool, run: Run, seeded: Path,
                                        tmp_path: Path) -> None:
    result = run("learn-prototypes", *SEEDED, "--start", "seeds", "--iters", 3, "--lr", rate,
                 "--tolerance", 0, "--out", tmp_path / "v.safetensors", work=seeded)
    assert result.code == 0, result.err
    assert ("the objective rose from " in result.err) is rises
    assert ("--lr 0.1, or take more steps, --iters 30" in result.err) is rises


@pytest.mark.parametrize(("options", "regions"), [
    ((), "each photo's patches, divided among its tags by the text"),
    (SEEDED, "each photo's seeds"),
    (("--pixels", "regions"), "each photo's CAM-weighted means")])
def test_the_gap_says_what_it_is_measured_to(options: tuple[object, ...], regions: str, run: Run,
                                             seeded: Path, tmp_path: Path) -> None:
    result = run("learn-prototypes", *QUICK, *options, "--out", tmp_path / "v.safetensors",
                 work=seeded)
    assert f"modality gap (1 - cosine) to {regions}: text " in result.err


def test_hardening_makes_another_result(run: Run, ready: Path, tmp_path: Path) -> None:
    found = [learn(run, ready / "work", tmp_path / f"{harden}.safetensors", "--tau-t", 1,
                   "--harden", harden)[1] for harden in (0, "0.04")]
    assert not torch.allclose(*found, atol=1e-4)


def test_zero_iterations_from_the_text_is_the_text(run: Run, ready: Path, tmp_path: Path) -> None:
    facts, rows, index = learn(run, ready / "work", tmp_path / "v.safetensors", "--iters", 0)
    text, text_index = text_of(ready / "work")
    assert torch.equal(rows, text)
    assert index.tolist() == text_index
    assert facts["gap"]["text"] == facts["gap"]["vision"]


def test_seeds_close_the_gap_to_the_seeds(run: Run, seeded: Path, tmp_path: Path) -> None:
    """Not to zero: photos' seeds spread around the mean of all of them."""
    facts, *_ = learn(run, seeded, tmp_path / "v.safetensors", *READINGS["not learned"])
    for number in ("cosine", "centroid"):
        assert facts["gap"]["vision"][number] < 0.5 * facts["gap"]["text"][number]


@pytest.mark.parametrize("name", STARTS)
def test_zero_iterations_from_a_start_is_the_start(name: str, run: Run, seeded: Path,
                                                   tmp_path: Path) -> None:
    _, rows, index = learn(run, seeded, tmp_path / "v.safetensors", "--start", name, "--iters", 0)
    _, start = read_tensors(seeded / f"prototypes/{name}.safetensors", "prototypes")
    assert torch.equal(rows, start["prototypes"])
    assert torch.equal(index, start["class_index"])


REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "targets": (("--targets", "seeds"), "--pixels seeds"),
    "no such start": (("--start", "seeds"), "vpltool seed-prototypes"),
    "clusters of all": (("--start", "clusters"), "--pixels seeds"),
    "clusters by text": ((*SEEDED, "--start", "clusters", "--targets", "text"), "--targets seeds"),
    "several a class by text": ((*SEEDED, "--start", "kmeans", "--targets", "text"),
                                "vpltool seed-prototypes --overwrite --background words"),
    "no background": ((*SEEDED, "--start", "groundless"), "vpltool seed-prototypes"),
    "not text": (("--text", "clusters"), "--text text, which vpltool text-prototypes makes"),
    "targets outside the student": (("--classes", "all", "--student", "present"), "--"),
    "no such CAMs": ((*SEEDED, "--cams", "tex"), "text"),
    "no such text": (("--text", "txt"), "did you mean `text`?"),
    "no seed at all": (("--pixels", "seeds", "--phi", 1, "--phi-background", 0, "--cams",
                        "cams/text-faint"), "--phi"),
}


@pytest.fixture(scope="module")
def faint(seeded: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """CAMs that nowhere reach 1 nor 0, as cams/text-faint; no prototypes/seeds; and a start
    without background, as prototypes/groundless."""
    work = copy_workspace(seeded.parent, tmp_path_factory.mktemp("faint") / "base",
                          tiny_clip) / "work"
    folder = work / "cams/text-faint/train"
    shutil.copytree(work / "cams/text/train", folder)
    for path in folder.glob("*.safetensors"):
        header, tensors = read_tensors(path, "cams")
        write_tensors(path, header, {**tensors, "cam": tensors["cam"].clamp(0.1, 0.9)})
    seeds = work / "prototypes/seeds.safetensors"
    header, tensors = read_tensors(seeds, "prototypes")
    kept = tensors["class_index"] > 0
    write_tensors(work / "prototypes/groundless.safetensors", header,
                  {name: tensor[kept] for name, tensor in tensors.items()})
    seeds.unlink()
    return work


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, run: Run, faint: Path, tmp_path: Path) -> None:
    options, hint = REFUSED[name]
    out = tmp_path / "v.safetensors"
    result = run("learn-prototypes", *QUICK, *options, "--out", out, work=faint)
    assert result.code == 1, result.err
    assert len(result.lines("error:")) == 1
    assert hint in result.lines("hint:")[0]
    assert not out.exists()


def test_what_does_not_fit_is_said(run: Run, seeded: Path, tmp_path: Path) -> None:
    """The rows of a start that the text has no targets for; prototypes that are no text."""
    _, text_index = text_of(seeded)
    out = ("--out", tmp_path / "v.safetensors")
    result = run("learn-prototypes", "--start", "clusters", *out, work=seeded)
    assert result.lines("error:") == [
        "--start clusters has 3 rows of classes and 3 of background, the text 3 rows of classes "
        f"and {text_index.count(0)} of background: the text gives targets for its own rows only"]
    result = run("learn-prototypes", "--text", "seeds", *out, work=seeded)
    assert result.lines("error:") == [
        f"{seeded}/prototypes/seeds.safetensors holds vision prototypes, and text prototypes are "
        "needed"]


def test_moved_text_is_text(run: Run, copied: Path) -> None:
    work = copied / "work"
    assert run("shift-gap", work=work).code == 0
    result = run("learn-prototypes", *QUICK, "--text", "shifted", work=work)
    assert result.code == 0, result.err


@pytest.mark.parametrize(("option", "value", "near"), [
    ("--solver", "lbgfs", "lbfgs"), ("--pixels", "seed", "seeds"), ("--targets", "txt", "text"),
    ("--classes", "al", "all"), ("--student", "al", "all")])
def test_an_unknown_choice_is_a_usage_error(option: str, value: str, near: str, run: Run,
                                            ready: Path) -> None:
    result = run("learn-prototypes", option, value, work=ready / "work")
    assert result.code == 2, result.err
    for said in (option, f"'{value}'", f"'{near}'"):
        assert said in result.err


@pytest.mark.parametrize(("words", "call"), [
    (("--background", "clusters"), "vpltool seed-prototypes --background clusters"),
    (("--clusters", "3"), "vpltool seed-prototypes --background clusters --clusters 24"),
    (("--per-class=2",), "vpltool seed-prototypes --method kmeans --per-class 4")])
def test_moved_options_say_where_they_are(words: tuple[str, ...], call: str, run: Run, ready: Path
                                          ) -> None:
    """`--pixels seeds --start seeds --background clusters` was one call; it is two now."""
    result = run("learn-prototypes", *SEEDED, "--start", "seeds", *words, work=ready / "work")
    assert result.code == 2
    said = " ".join(result.err.replace("│", " ").split())
    assert f"{words[0].partition('=')[0]} has moved: {call}, then --start seeds" in said


def test_the_help_is_short(run: Run) -> None:
    """What the paper names and what every run needs; all the rest by --help-all."""
    listed = {flag: re.findall(r"^(?:│ |  )(--[a-z-]+)", run("learn-prototypes", flag).out,
                               re.MULTILINE) for flag in ("--help", "--help-all")}
    assert set(listed["--help"]) == {
        "--tau-t", "--tau-i", "--iters", "--lr", "--solver", "--pixels", "--start", "--split",
        "--max-pixels", "--seed", "--out"}
    assert set(listed["--help-all"]) > set(listed["--help"])
    hidden = {entry.flag for entry in described(LearnPrototypesSettings) if not entry.brief}
    running = {"--quiet", "--overwrite", "--help", "--help-all"}
    assert hidden | running == set(listed["--help-all"]) - set(listed["--help"])


@pytest.mark.parametrize("options", [(), SEEDED, ("--pixels", "regions")])
def test_max_pixels(options: tuple[str, ...], run: Run, ready: Path, tmp_path: Path) -> None:
    used = []
    for bound in (12, 6):
        result = run("learn-prototypes", *QUICK, *options, "--max-pixels", bound, "--out",
                     tmp_path / f"{bound}.safetensors", work=ready / "work")
        assert result.code == 0, result.err
        said = next(line for line in result.err.splitlines() if "patches of" in line)
        used.append(int(said.split()[0]))
        assert used[-1] <= bound
        assert said.endswith("6 photos are used")
    assert used[1] == 6


@pytest.mark.parametrize("options", [(), SEEDED, ("--pixels", "regions")])
def test_fewer_pixels_than_photos(options: tuple[str, ...], run: Run, ready: Path,
                                  tmp_path: Path) -> None:
    """The bound holds, and it is said that photos are left out."""
    result = run("learn-prototypes", *QUICK, *options, "--max-pixels", 4, "--out",
                 tmp_path / "x.safetensors", work=ready / "work")
    assert result.code == 0, result.err
    assert ("--max-pixels 4 is below the number of photos: 4 of 6 photos are used, spread evenly, "
            "and one pixel of each") in result.lines("warning:")
    said = next(line for line in result.err.splitlines() if "patches of" in line)
    assert int(said.split()[0]) <= 4
    assert said.endswith("4 photos are used")


def test_a_second_run_does_no_work(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("seed-prototypes", *STARTS["kmeans"], work=copied / "work").code == 0
    options = ("learn-prototypes", *QUICK, *SEEDED, "--start", "seeds")
    path = copied / "work/prototypes/vision.safetensors"
    first = run(*options, work=copied / "work")
    assert first.code == 0, first.err
    before = (path.read_bytes(), path.stat().st_mtime_ns)

    def never(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr("vpltool.stages._phase_one.gather", never)
    second = run(*options, work=copied / "work")
    assert second.code == 0, second.err
    assert second.out == first.out
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    refused = run(*options, "--tau-i", "0.05", work=copied / "work")
    assert refused.code == 1
    assert "tau_i was 0.03, now 0.05" in refused.lines("error:")[0]
    assert "--overwrite" in refused.lines("hint:")[0]


def test_fewer_photos_are_another_result(run: Run, copied: Path) -> None:
    """What --limit gave must not pass for the prototypes of all photos."""
    work = copied / "work"
    assert run("learn-prototypes", *QUICK, "--limit", 2, work=work).code == 0
    few = (work / "prototypes/vision.safetensors").read_bytes()
    result = run("learn-prototypes", *QUICK, work=work)
    assert result.code == 1, "the result of two photos was taken for that of all"
    assert run("learn-prototypes", *QUICK, "--overwrite", work=work).code == 0
    assert (work / "prototypes/vision.safetensors").read_bytes() != few


@pytest.mark.parametrize("name", ["clusters", "several a class", "rounds"])
def test_same_seed_same_bytes(name: str, run: Run, seeded: Path, tmp_path: Path) -> None:
    options = (*READINGS[name], "--max-pixels", 60)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(7)
        learn(run, seeded, tmp_path / f"{out}.safetensors", *options, "--seed", seed)
    first, second, other = ((tmp_path / f"{out}.safetensors").read_bytes() for out in "abc")
    assert first == second
    rows = [read_tensors(tmp_path / f"{out}.safetensors", "prototypes")[1]["prototypes"]
            for out in "ac"]
    assert rows[0].shape != rows[1].shape or not torch.equal(*rows), other[:0]


def test_header_names_what_it_was_made_from(run: Run, seeded: Path, tmp_path: Path) -> None:
    learn(run, seeded, tmp_path / "all.safetensors")
    learn(run, seeded, tmp_path / "seeds.safetensors", *SEEDED)
    learn(run, seeded, tmp_path / "started.safetensors", *SEEDED, "--start", "clusters")
    for name, wanted in (
            ("all", {"features", "text", "tags"}), ("seeds", {"features", "text", "tags", "cams"}),
            ("started", {"features", "text", "tags", "cams", "start"})):
        header = describe(tmp_path / f"{name}.safetensors").header
        assert header is not None
        assert set(header.inputs) == {*wanted, "photos", "photo-files"}
        assert header.options["start"] == ("clusters" if name == "started" else "text")
    assert header.sources["start"] == "prototypes/clusters.safetensors"
    assert header.options["targets"] == "seeds"
    assert "targets" not in header.call, "it was not asked for"


def test_a_start_made_anew_is_seen(run: Run, copied: Path) -> None:
    """The same settings, but from other seeds: refused, and made again by --update."""
    work = copied / "work"
    options = ("learn-prototypes", *QUICK, *SEEDED, "--start", "seeds")
    assert run("seed-prototypes", *STARTS["clusters"], work=work).code == 0
    assert run(*options, work=work).code == 0
    path = work / "prototypes/vision.safetensors"
    before = path.read_bytes()
    assert run("seed-prototypes", *STARTS["kmeans"], "--overwrite", work=work).code == 0
    refused = run(*options, work=work)
    assert refused.code == 1
    assert "prototypes/seeds.safetensors has changed" in refused.lines("error:")[0]
    assert path.read_bytes() == before
    assert run(*options, "--update", work=work).code == 0
    assert path.read_bytes() != before


def test_only_photos_without_tags(run: Run, copied: Path) -> None:
    """No class is there to learn: a line and a hint, no traceback."""
    listing = copied / "work/images.jsonl"
    lines = [json.loads(line) | {"labels": []} for line in listing.read_text().splitlines()]
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("learn-prototypes", *QUICK, work=copied / "work")
    assert result.code == 1
    assert result.lines("hint:")


def test_value_patches_are_other_patches(run: Run, copied: Path, tmp_path: Path) -> None:
    """--patches value changes the patch embeddings alone; CAMs and prototypes take the folder."""
    work, folder = copied / "work", tmp_path / "value"
    assert run("extract", "--patches", "value", "--workers", 0, "--out", folder,
               work=work).code == 0
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) == 6
    for name in names:
        first, second = (read_tensors(folder_of / name, "features")[1]
                         for folder_of in (work / "features/train", folder))
        assert torch.equal(first["tokens"], second["tokens"])
        assert not torch.allclose(first["patches"], second["patches"], atol=0.01)
        torch.testing.assert_close(second["patches"].float().norm(dim=-1),
                                   torch.ones(len(second["patches"])), atol=1e-2, rtol=0)
    assert run("cam", "--method", "dense", "--features", folder, "--name", "value",
               work=work).code == 0
    assert run("learn-prototypes", "--features", folder, "--iters", 2, work=work).code == 0
    refused = run("extract", "--patches", "values", work=work)
    assert refused.code == 2
    assert "'value'" in refused.err


BASES: dict[str, tuple[tuple[object, ...], list[tuple[object, ...]]]] = {
    "all": ((), [("--classes", "all"), ("--student", "present"), ("--rounds", 2),
                 ("--solver", "lbfgs"), ("--lr", 3), ("--tau-t", "0.03"), ("--tau-i", "0.05"),
                 ("--max-pixels", 60), ("--pixels", "regions")]),
    "seeds": ((*SEEDED, "--start", "seeds"), [
        ("--start", "text"), ("--targets", "text"), ("--balance",), ("--phi", "0.9"),
        ("--phi-background", "0.1"), ("--start", "kmeans"), ("--start", "clusters"),
        ("--cams", "text"), ("--student", "present"), ("--rounds", 2)]),
}


@pytest.mark.parametrize("base", BASES)
def test_every_option_makes_a_difference(base: str, run: Run, seeded: Path, tmp_path: Path
                                         ) -> None:
    """An option that is parsed, stored in the header and then forgotten would not."""
    common, variants = BASES[base]
    found: dict[bytes, tuple[object, ...]] = {}
    for number, options in enumerate([(), *variants]):
        out = tmp_path / f"{number}.safetensors"
        _, rows, _ = learn(run, seeded, out, *common, *options)
        content = rows.numpy().tobytes()
        assert content not in found, f"{options} is the same as {found[content]}"
        found[content] = options
