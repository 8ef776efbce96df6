"""Methods around prototypes, through the command line: files against loops, records, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, Run, copy_workspace
from reference import banks, cpal, lpcam, pgseg, vda
from torch import Tensor

from vpltool.core.prototypes import spherical_kmeans
from vpltool.formats import describe, open_input, read_tensors

SEEDED = ("--cams", "text", "--phi", "0.6", "--phi-background", "0.3")
MADE: dict[str, tuple[object, ...]] = {
    "em": ("--method", "em", "--per-class", 2, "--photos", 1, "--passes", 2),
    "context": ("--method", "context", "--per-class", 2),
    "vda": ("--method", "vda", "--least", "0.3", "--tau", "0.1"),
    "lpcam": ("--method", "lpcam", "--per-class", 2, "--tau", "0.5", "--context-most", "0.6"),
    "bank": ("--method", "bank"),
    "regions": ("--method", "bank", "--pixels", "regions"),
}
"""Prototypes of these tests, by the options of `seed-prototypes` that make them."""


@pytest.fixture(scope="module")
def work(ready: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The workspace of `ready` with these prototypes. Read only."""
    work = copy_workspace(ready, tmp_path_factory.mktemp("protos") / "base", tiny_clip) / "work"
    for name, options in MADE.items():
        seeded = ("--cams", "text") if "regions" in options else SEEDED
        result = run("seed-prototypes", *seeded, *options, "--out",
                     work / f"prototypes/{name}.safetensors", work=work)
        assert result.code == 0, result.err
    return work


def rows_of(work: Path, name: str) -> dict[str, Tensor]:
    return read_tensors(work / f"prototypes/{name}.safetensors", "prototypes")[1]


def photos(work: Path) -> Iterator[tuple[str, Tensor, Tensor, list[int]]]:
    """Id, patches, CAMs and tags of each photo of the training split."""
    for path in sorted((work / "features/train").glob("scene*")):
        maps = read_tensors(work / "cams/text/train" / path.name, "cams")[1]
        patches = read_tensors(path, "features", ("patches",))[1]["patches"].float()
        yield path.stem, patches, maps["cam"].float(), maps["classes"].tolist()


def seeds(work: Path) -> tuple[Tensor, list[int], list[int]]:
    """Seeds of all photos, L2-normed; their classes and the numbers of their photos."""
    found, owners, photo_of = [], [], []
    for number, (_, patches, cams, tags) in enumerate(photos(work)):
        for patch, scores in zip(patches, cams.flatten(1).T, strict=True):
            if scores.max() >= 0.6 or scores.max() < 0.3:
                found.append(F.normalize(patch, dim=0))
                owners.append(tags[int(scores.argmax())] if scores.max() >= 0.6 else 0)
                photo_of.append(number)
    return torch.stack(found), owners, photo_of


def of_class(items: Tensor, owners: list[int], index: int) -> Tensor:
    return items[[number for number, owner in enumerate(owners) if owner == index]]


def test_em_is_pgsegs_loop(work: Path) -> None:
    found, (pixels, owners, photo_of) = rows_of(work, "em"), seeds(work)
    for index in set(owners) - {0}:
        own = of_class(pixels, owners, index)
        wanted = pgseg.prototypes(
            own.double().numpy(),
            [photo for photo, owner in zip(photo_of, owners, strict=True) if owner == index],
            spherical_kmeans(own, 2, rounds=0).double().numpy(), 0.05, 1, 2)
        np.testing.assert_allclose(found["prototypes"][found["class_index"] == index].numpy(),
                                   wanted, atol=1e-3)


def test_context_clusters_one_region_a_photo(work: Path) -> None:
    found, (pixels, owners, photo_of) = rows_of(work, "context"), seeds(work)
    for index in set(owners) - {0}:
        regions = [F.normalize(torch.stack(
            [pixel for pixel, owner, number in zip(pixels, owners, photo_of, strict=True)
             if (owner, number) == (index, photo)]).mean(dim=0), dim=0)
            for photo in sorted({number for owner, number in zip(owners, photo_of, strict=True)
                                 if owner == index})]
        torch.testing.assert_close(found["prototypes"][found["class_index"] == index],
                                   spherical_kmeans(torch.stack(regions), 2), atol=1e-3, rtol=0)


def test_vda_is_the_loops(work: Path) -> None:
    found, text, (pixels, owners, photo_of) = rows_of(work, "vda"), rows_of(work, "text"), seeds(
        work)
    pairs = sorted({(photo, owner) for photo, owner in zip(photo_of, owners, strict=True) if owner})
    regions = [F.normalize(torch.stack(
        [pixel for pixel, *pair in zip(pixels, photo_of, owners, strict=True)
         if tuple(pair) == wanted]).mean(dim=0), dim=0) for wanted in pairs]
    wanted = vda.prototypes(torch.stack(regions).numpy(), [owner for _, owner in pairs],
                            text["prototypes"].numpy(), text["class_index"].tolist(), 0.1, False,
                            0.3)
    np.testing.assert_allclose(found["prototypes"].numpy(), np.stack(wanted), atol=1e-3)
    changed = (found["prototypes"] - text["prototypes"]).abs().amax(dim=1) > 0.01
    assert bool(changed.any()), "no region counts: this would not test the filter"
    assert not changed[text["class_index"] == 0].any()


def test_lpcam_says_whose_context_a_row_is(work: Path) -> None:
    found, text, (pixels, owners, photo_of) = rows_of(work, "lpcam"), rows_of(work, "text"), seeds(
        work)
    context_of, index = found["context_of"], found["class_index"]
    assert bool((context_of > 0).any()), "without context rows this would not test them"
    assert index[context_of > 0].eq(0).all()
    tags = [classes for *_, classes in photos(work)]
    for owner in set(owners) - {0}:
        around = pixels[[number for number, other in enumerate(owners)
                         if other != owner and owner in tags[photo_of[number]]]]
        centres = spherical_kmeans(around, 2)
        likely = [lpcam.probability(x, owner, text["prototypes"].numpy(),
                                    text["class_index"].tolist(), 0.5, False)
                  for x in centres.numpy()]
        kept = lpcam.kept_context(likely, 0.05, 0.6)
        torch.testing.assert_close(found["prototypes"][context_of == owner], centres[kept],
                                   atol=1e-3, rtol=0)
        assert bool((index == owner).any())


@pytest.mark.parametrize("name", ["bank", "regions"])
def test_a_bank_knows_its_photos(name: str, work: Path) -> None:
    header, found = read_tensors(work / f"prototypes/{name}.safetensors", "prototypes")
    ids = header.facts["photos"]
    assert ids == [key for key, *_ in photos(work)]
    if name == "bank":
        pixels, owners, photo_of = seeds(work)
        count = len(pixels)
        torch.testing.assert_close(found["prototypes"][:count], pixels, atol=1e-3, rtol=0)
        assert found["class_index"][:count].tolist() == owners
        assert found["photo_of"][:count].tolist() == photo_of
    for key, _, cams, tags in photos(work):
        mine = found["class_index"][found["photo_of"] == ids.index(key)].tolist()
        assert set(mine) <= {0, *tags}
        shown = [tag for tag, cam in zip(tags, cams, strict=True) if cam.any()]
        assert name == "bank" or mine == [*shown, 0]
    assert set(found["class_index"].tolist()) >= {1, 2, 3}


def drawn(run: Run, work: Path, out: Path, *command: object) -> dict[str, Tensor]:
    """Run `cam` or `refine`: id to maps."""
    result = run(*command, "--store", "fp32", "--out", out, work=work)
    assert result.code == 0, result.err
    return {path.stem: read_tensors(path, "cams")[1]["cam"] for path in out.glob("scene*")}


def test_lpcam_maps_are_the_loops(work: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(work, "lpcam")
    found = drawn(run, work, tmp_path / "x", "cam", "--prototypes", "lpcam", "--method", "lpcam")
    for key, patches, cams, tags in photos(work):
        for number, tag in enumerate(tags):
            wanted = lpcam.cam(patches.numpy(), rows["prototypes"][rows["class_index"] == tag],
                               rows["prototypes"][rows["context_of"] == tag], cams.shape[1:])
            np.testing.assert_allclose(found[key][number].numpy(), wanted, atol=1e-4)


def test_knn_maps_are_the_loops(work: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(work, "bank")
    found = drawn(run, work, tmp_path / "x", "cam", "--prototypes", "bank", "--method", "knn",
                  "--neighbours", 5)
    for number, (key, patches, _, tags) in enumerate(photos(work)):
        wanted = banks.soft_labels(patches.numpy(), tags, number, rows["prototypes"].numpy(),
                                   rows["class_index"].tolist(), rows["photo_of"].tolist(), 5)
        np.testing.assert_allclose(found[key].flatten(1).T.numpy(), wanted, atol=1e-3)


def test_retrieval_is_the_loops(work: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(work, "regions")
    found = drawn(run, work, tmp_path / "x", "refine", "--cams", "text", "--prototypes", "regions",
                  "--method", "retrieval", "--neighbours", 2)
    for number, (key, patches, cams, tags) in enumerate(photos(work)):
        wanted = banks.supported_maps(
            patches.numpy(), cams.numpy(), tags, number, rows["prototypes"].numpy(),
            rows["class_index"].tolist(), rows["photo_of"].tolist(), 2)
        np.testing.assert_allclose(found[key].numpy(), wanted, atol=1e-3)


def test_photos_outside_the_bank_ask_all_of_it(work: Path, run: Run, tmp_path: Path) -> None:
    for command in (("cam", "--method", "knn", "--prototypes", "bank"),
                    ("refine", "--method", "retrieval", "--prototypes", "regions", "--cams",
                     "text")):
        found = drawn(run, work, tmp_path / command[0], *command, "--split", "val")
        assert len(found) == 2
        assert all(0 <= float(maps.min()) <= float(maps.max()) <= 1 for maps in found.values())


def test_cpal_is_the_loops(work: Path, run: Run, tmp_path: Path) -> None:
    rows = rows_of(work, "context")
    found = drawn(run, work, tmp_path / "x", "refine", "--cams", "text", "--prototypes", "context",
                  "--method", "cpal", "--shift", "0.7")
    for key, patches, cams, tags in photos(work):
        for number, tag in enumerate(tags):
            own = rows["prototypes"][rows["class_index"] == tag].numpy()
            wanted = cpal.pacam(patches.numpy(), cams[number].numpy(), own, 0.5, 4, 0.05, 0.7)
            np.testing.assert_allclose(found[key][number].numpy(), wanted, atol=2e-3)


def test_settings_are_recorded(work: Path, run: Run, tmp_path: Path) -> None:
    header = describe(work / "prototypes/em.safetensors").header
    assert header is not None
    assert {name: header.options[name] for name in ("method", "per_class", "momentum", "reject")
            } == {"method": "em", "per_class": 2, "momentum": 0.9, "reject": 0.1}
    index = rows_of(work, "em")["class_index"].tolist()
    assert header.facts["rows"] == [("background", *SHAPES)[owner] for owner in index]
    assert len(index) > len(rows_of(work, "text")["class_index"])
    drawn(run, work, tmp_path / "x", "refine", "--cams", "text", "--prototypes", "context",
          "--method", "cpal", "--shift", "0.2")
    made = open_input(tmp_path / "x", ("cams",)).header
    assert (made.options["method"], made.options["shift"]) == ("cpal", 0.2)
    assert made.sources["prototypes"] == "prototypes/context.safetensors"


@pytest.mark.parametrize(("command", "said", "hint"), [
    (("cam", "--method", "knn", "--prototypes", "text"), "which photos its rows come from",
     "vpltool seed-prototypes --method bank --out bank.safetensors"),
    (("refine", "--method", "retrieval", "--cams", "text", "--prototypes", "lpcam"),
     "which photos its rows come from", "--method bank"),
    (("cam", "--method", "lpcam", "--prototypes", "bank"), "whose context its rows are",
     "vpltool seed-prototypes --method lpcam --out lpcam.safetensors"),
])
def test_prototypes_that_do_not_say_enough(command: tuple[str, ...], said: str, hint: str,
                                           work: Path, run: Run, tmp_path: Path) -> None:
    """Refused before what is there is deleted."""
    out = tmp_path / "x"
    before = drawn(run, work, out, "cam", "--method", "dense")
    result = run(*command, "--out", out, "--overwrite", work=work)
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert {path.stem for path in out.glob("scene*")} == set(before)


def test_a_class_without_seeds_keeps_its_text(work: Path, run: Run, tmp_path: Path) -> None:
    """Of the one photo that is taken, one class."""
    text = rows_of(work, "text")
    for name, options in MADE.items():
        seeded = ("--cams", "text") if "regions" in options else SEEDED
        out = tmp_path / f"{name}.safetensors"
        result = run("seed-prototypes", *seeded, *options, "--limit", 1, "--out", out, work=work)
        assert result.code == 0, result.err
        found = read_tensors(out, "prototypes")[1]
        for index in (2, 3):
            assert torch.equal(found["prototypes"][found["class_index"] == index],
                               text["prototypes"][text["class_index"] == index])


def test_filters_say_what_they_keep(work: Path, run: Run, tmp_path: Path
                                                         ) -> None:
    for name, word in (("vda", "regions exceed 0.3"), ("lpcam", "of their contexts")):
        result = run("seed-prototypes", *SEEDED, *MADE[name], "--out",
                     tmp_path / f"{name}.safetensors", work=work)
        assert word in result.err
