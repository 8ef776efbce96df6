"""A new user follows the first page of the documentation to the letter, with 60 photos."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, Run
from PIL import Image
from test_docs import ROOT

import vpltool.demo
from vpltool.demo.scenes import draw_scene
from vpltool.formats import describe, read_labels

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")

REALDATA = ROOT.parent / "shared/realdata"
WORK = Path("work/photos")
PHOTOS, CORRECTED = 60, 6
REAL = [pytest.mark.slow, pytest.mark.skipif(not (REALDATA / "animals").exists(),
                                             reason="../shared/realdata does not exist")]


def page_lines() -> list[str]:
    """The commands of the page's walk, in order."""
    text = (ROOT / "docs/index.md").read_text("utf-8").split("\n## From 60 photos")[1]
    page = "\n".join(re.findall(r"^```sh\n.*?^```", text, flags=re.MULTILINE | re.DOTALL))
    return [line for line in page.splitlines() if line.startswith("vpltool ")]


def draw_photos(home: Path) -> Path:
    """Write 60 scenes of the demo, half as large, and their tags; return the demo's CLIP."""
    rows = ["id,labels"]
    (home / "photos").mkdir()
    for number in range(PHOTOS):
        scene = draw_scene(7, number)
        Image.fromarray(scene.image).reduce(2).save(home / f"photos/s{number:02}.jpg", quality=95)
        rows.append(f"s{number:02},{';'.join(scene.tags)}")
    (home / "tags.csv").write_text("\n".join(rows) + "\n")
    return Path(vpltool.demo.__path__[0]) / "clip"


def take_animals(home: Path) -> Path:
    """Take ten real photos of each of six animals, and their tags; return a small real CLIP."""
    source, seen = REALDATA / "animals", Counter[str]()
    rows = ["id,labels"]
    (home / "photos").mkdir()
    with (source / "tags.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            first = row["labels"].split(";")[0]
            if row["split"] == "train" and seen[first] < PHOTOS // 6:
                seen[first] += 1
                (photo,) = (source / "photos").glob(f"{row['id']}.*")
                shutil.copyfile(photo, home / "photos" / photo.name)
                rows.append(f"{row['id']},{row['labels']}")
    (home / "tags.csv").write_text("\n".join(rows) + "\n")
    return REALDATA / "vlm-s14"


@dataclass
class Reader:
    """Somebody who follows the page: the folder, the CLIP that is at hand, and how far they are."""

    home: Path
    clip: Path
    run: Run
    done: list[Result] = field(default_factory=list)

    def reach(self, step: int) -> Result:
        """Run the page's lines up to this one, each once; after the second, correct masks."""
        for line in page_lines()[len(self.done):step + 1]:
            # The default CLIP would be downloaded.
            more = [f"pretrained={self.clip}", "rounds=0"] if len(self.done) == 0 else []
            result = self.run(*shlex.split(line)[1:], *more)
            assert result.code == 0, f"{line}: {result.err}"
            self.done.append(result)
            if len(self.done) == 2:
                annotate(self.home)
        return self.done[step]


def annotate(home: Path) -> None:
    """Edit the tasks as an annotator does: erase a region, draw one anew, submit, export."""
    tasks = json.loads((home / "label-studio/tasks.json").read_text())
    for number, task in enumerate(tasks):
        task |= {"id": number, "annotations": []}
        if number < CORRECTED:
            strokes = task["predictions"][0]["result"]
            drawn = dict(strokes[0], id="drawn", type="polygonlabels", value={
                "points": [[10, 10], [60, 10], [60, 70], [10, 70]], "closed": True,
                "polygonlabels": strokes[0]["value"]["brushlabels"]})
            task["annotations"] = [{"id": number, "was_cancelled": False,
                                    "result": [*strokes[1:], drawn]}]
    (home / "corrected.json").write_text(json.dumps(tasks))


@pytest.fixture(scope="module", params=[
    pytest.param(draw_photos, id="drawn"), pytest.param(take_animals, id="animals", marks=REAL)])
def reader(request: pytest.FixtureRequest, run: Run, tmp_path_factory: pytest.TempPathFactory
           ) -> Any:
    home = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
        yield Reader(home, request.param(home), run)


def test_the_page_has_a_line_for_each_step() -> None:
    assert [shlex.split(line)[3] for line in page_lines()] == [
        "run", "export", "prepare", "update", "report", "export"]


def test_masks_and_a_segmenter(reader: Reader) -> None:
    told = reader.reach(0)
    assert len(list((WORK / "masks/seeds-refined-full/train").glob("*.png"))) == 54
    assert (WORK / "pictures/masks.png").exists()
    assert "on `val`: of 6 photos" in told.out


def test_masks_in_label_studio(reader: Reader) -> None:
    reader.reach(1)
    tasks = json.loads(Path("label-studio/tasks.json").read_text())
    assert len(tasks) == 54
    assert all((Path("label-studio/images") / Path(task["data"]["image"]).name.split("/")[-1]
                ).exists() for task in tasks)
    assert "BrushLabels" in Path("label-studio/config.xml").read_text()


def test_corrected_masks_come_back(reader: Reader) -> None:
    reader.reach(2)
    taken = sorted((WORK / "corrections").glob("*.png"))
    assert len(taken) == CORRECTED
    for path in taken:
        labels = read_labels(path)
        height, width = labels.shape
        drawn = labels[height // 8:height * 5 // 8, width // 8:width * 4 // 8]
        assert len(np.unique(drawn)) == 1
        assert drawn[0, 0] > 0


def test_the_segmenter_has_learned_from_them(reader: Reader) -> None:
    reader.reach(2)
    decoder = WORK / "decoder/segmenter.safetensors"
    before = decoder.read_bytes() if len(reader.done) == 3 else b""
    reader.reach(3)
    header = describe(decoder).header
    assert header is not None
    assert header.supervision == f"tags and {CORRECTED} corrected masks"
    assert decoder.read_bytes() != before
    assert reader.run("-C", WORK, "status", "--stale").out.strip() == "no result is stale"


def test_a_report_in_a_browser(reader: Reader) -> None:
    reader.reach(4)
    page = (WORK / "report/index.html").read_text("utf-8")
    assert "predictions/segmenter" in page
    assert not re.search(r'(?:src|href)="https?:', page)
    assert len(list((WORK / "report").rglob("*.jpg"))) >= 6


def test_an_onnx_file_that_runs(reader: Reader) -> None:
    """By the page's program, which imports neither torch nor vpltool."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    reader.reach(5)
    (program,) = (block for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text("utf-8"), flags=re.DOTALL)
        if "onnxruntime" in block)
    photo = sorted(Path("photos").iterdir())[1]
    shutil.copyfile(photo, "photo.jpg")
    exec(compile(program, "deploy.md", "exec"), {})  # noqa: S102 - our own page
    told = reader.run("-C", WORK, "predict", photo, "--decoder", "segmenter",
                      "--out", "torch.png")
    assert told.code == 0, told.err
    with Image.open("labels.png") as ours, Image.open("torch.png") as theirs:
        assert (np.asarray(ours) == np.asarray(theirs)).mean() > 0.95
