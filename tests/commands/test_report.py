"""`report`: a page that is sound HTML, holds what it should, and fetches nothing; in a browser,
where there is one, it is sorted, filtered and looked through."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run, copy_workspace, draw_scenes, run_chain, write_scenes
from PIL import Image

from vpltool.formats import describe, read_labels, write_labels
from vpltool.pictures.page import line_chart, render_page, ticks

VOID = {"meta", "img", "input", "br", "link", "hr"}
HOSTILE = "</script><img src=x onerror=\"document.title='run'\">"
HOSTILE_ID = "a'b \"c\" &amp; <b>d"


class Page(HTMLParser):
    """Elements of a page, and the text of its scripts; tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.scripts[0])
        return shown

    @property
    def photos(self) -> list[dict[str, Any]]:
        photos: list[dict[str, Any]] = json.loads(self.scripts[1])
        return photos


def check_sound(page: Page, folder: Path) -> None:
    """Alt texts, labels, unique ids, no address outside, every picture there, no style by hand."""
    assert all("alt" in image for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "src"):
            address = attributes.get(name, "#")
            assert re.match(r"#[\w-]*$|pictures/[\w/.-]+$|data:image/(png|jpeg);base64,", address)
            if address.startswith("#") and len(address) > 1:
                assert address[1:] in ids
    assert "http" not in "".join(page.scripts[2:]).replace("http://www.w3.org/2000/svg", "")
    named = {attributes["aria-labelledby"] for _, attributes in page.elements
             if "aria-labelledby" in attributes}
    assert named <= set(ids)
    (policy,) = (attributes["content"] for attributes in page.all("meta")
                 if attributes.get("http-equiv") == "Content-Security-Policy")
    script = base64.b64encode(hashlib.sha256(page.scripts[2].encode()).digest()).decode()
    assert f"script-src 'sha256-{script}'" in policy
    assert policy.startswith("default-src 'none';")
    for photo in page.photos:
        for entry in (photo, *photo["layers"]):
            if (picture := entry.get("picture", "data:")) and not picture.startswith("data:"):
                with Image.open(folder / picture) as image:
                    image.load()


def read(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def reported(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A workspace with predictions, scores and a gap, and its report. Leave it as it is."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("reported") / "base", tiny_clip)
    run_chain(base, (
        ("predict", "--split", "train", "--workers", 0),
        ("eval", "--split", "train", "--what", "cams/text"),
        ("eval", "--split", "train", "--what", "masks/text-refined-full"),
        ("eval", "--split", "train", "--what", "predictions/tiny"),
        ("learn-prototypes", "--iters", 4), ("gap", "--phi", 0.2),
        ("report", "--split", "train", "--workers", 0)))
    return base


def test_the_page_is_sound_and_says_it_all(reported: Path) -> None:
    page = read(reported / "work/report/index.html")
    check_sound(page, reported / "work/report")
    sections = {attributes["id"] for attributes in page.all("section")}
    assert sections == {"scores", "classes", "confusion", "tags", "curves", "gap", "made", "photos"}
    text = " ".join(" ".join(page.text).split())
    for path in (reported / "work/scores").glob("*-train.json"):
        score = json.loads(path.read_text())
        assert f"{score['what']} train 6 {100 * score['miou']:.1f}" in text
    # `layered` made the features anew, after the CAMs.
    assert ("masks/text-refined/train crf defaults cams/text-refined/train stale : "
            "cams/text-refined/train is not up to date") in text
    assert "features/train extract" in text
    names = [layer["name"] for layer in page.shown["layers"]]
    assert names == ["cams/text", "cams/text-refined", "masks/text-refined",
                     "masks/text-refined-full", "predictions/tiny", "truth"]
    assert [photo["id"] for photo in page.photos] == [f"scene{number}" for number in range(6)]
    drawn = [attributes for tag, attributes in page.elements if tag == "svg" and
             attributes.get("role") == "img"]
    description = " ".join(attributes["aria-label"] for attributes in drawn)
    assert "decoder/tiny.safetensors (train-decoder), step" in description
    assert "prototypes/vision.safetensors (learn-prototypes), step" in description
    assert "cams-text from" in description


def test_photos_come_first_and_provenance_last(reported: Path) -> None:
    text = (reported / "work/report/index.html").read_text()
    order = re.findall(r'<section id="(\w+)"', text)
    assert order[0] == "photos" and order[-1] == "made"
    assert order == [name for name in re.findall(r'<a href="#(\w+)">', text) if name in order]


def test_what_is_said_of_a_photo_is_what_its_files_say(reported: Path) -> None:
    """IoU by counting pixels one by one; uncertainty, areas and tags from the files themselves."""
    from vpltool.formats import read_labels, read_tensors

    work = reported / "work"
    page = read(work / "report/index.html")
    scenes = {scene.id: scene for scene in draw_scenes()}
    seen = set()
    for photo in page.photos:
        scene = scenes[photo["id"]]
        tags = {1 + ("bar", "box", "disc").index(tag) for tag in scene.tags}
        assert set(photo["tags"]) == tags
        labels = read_labels(work / f"predictions/tiny/train/{scene.id}.png")
        said = photo["layers"][4]
        ious = []
        for index in {*scene.mask.ravel().tolist()}:
            both = int(((labels == index) & (scene.mask == index)).sum())
            any_of = int(((labels == index) | (scene.mask == index)).sum())
            ious.append(both / any_of)
        assert said["iou"] == pytest.approx(sum(ious) / len(ious), abs=1e-4)
        _, tensors = read_tensors(work / f"probabilities/tiny/train/{scene.id}.safetensors",
                                  "probabilities")
        likely = tensors["probabilities"].float().numpy().max(axis=0)
        assert said["unsure"] == pytest.approx(1 - likely.mean(), abs=1e-3)
        found = {index for index in range(1, 4) if (labels == index).mean() >= 0.01}
        assert (set(said["missed"]), set(said["extra"])) == (tags - found, found - tags)
        assert dict(map(tuple, said["areas"])) == {
            index: pytest.approx((labels == index).mean(), abs=1e-4)
            for index in {*labels.ravel().tolist()}}
        mask = read_labels(work / f"masks/text-refined/train/{scene.id}.png")
        unsure = photo["layers"][2].get("unsure", 0)
        assert unsure == pytest.approx((mask == 255).mean(), abs=1e-4)
        assert "apart" not in photo["layers"][2], "masks are made from the tags"
        seen |= found
    assert "iou" in page.photos[0]["layers"][0], "CAMs are cut where their scores cut them"
    assert "iou" not in page.photos[0]["layers"][1], "these have no scores"


def test_the_table_of_tags_counts_photos(reported: Path) -> None:
    page = read(reported / "work/report/index.html")
    pairs = [(set(photo["tags"]), set(photo["layers"][4]["found"])) for photo in page.photos]
    text = " ".join(" ".join(page.text).split())
    for index, name in ((1, "bar"), (2, "box"), (3, "disc")):
        tagged = sum(index in tags for tags, _ in pairs)
        found = sum(index in seen for _, seen in pairs)
        both = sum(index in tags & seen for tags, seen in pairs)
        spelled = [f"{100 * both / count:.1f}" if count else "-" for count in (found, tagged)]
        assert f"{name} {tagged} {found} {' '.join(spelled)} " in text


def test_the_table_of_tags_says_what_eval_says(reported: Path, tmp_path: Path, run: Run,
                                               tiny_clip: Path) -> None:
    """Of a photo without a tag, and of classes that are never found or never tagged, too."""
    base = copy_workspace(reported, tmp_path / "base", tiny_clip)
    name = read(base / "work/report/index.html").shown["layers"][4]["name"]
    (folder,) = (base / "work" / name).parent.glob(f"{Path(name).name}/train")
    for path in folder.glob("*.png"):
        header, labels = describe(path).header, read_labels(path).copy()
        assert header is not None
        labels[labels == 2] = 1
        write_labels(path, labels, header)
    images = [json.loads(line) for line in (base / "work/images.jsonl").read_text().splitlines()]
    (base / "work/images.jsonl").write_text("".join(json.dumps(photo | {"labels": [
        label for label in photo["labels"] if label != "disc" and photo is not images[0]]}) + "\n"
        for photo in images))
    said = run("eval", "--what", name, "--split", "train", "--against", "tags", "--json",
               work=base / "work")
    assert said.code == 0, said.err
    assert run("report", name, "--split", "train", "--workers", 0, work=base / "work").code == 0
    text = " ".join(" ".join(read(base / "work/report/index.html").text).split())
    told = json.loads(said.out)

    def spell(scores: dict[str, float | None]) -> str:
        return " ".join("-" if scores[key] is None else f"{100 * scores[key]:.1f}"
                        for key in ("precision", "recall", "f1"))

    for label, scores in told["classes"].items():
        row = f"{label} {scores['tagged']} {scores['predicted']} {spell(scores)} "
        assert (row in text) is bool(scores["tagged"] or scores["predicted"])
    assert f"{spell(told['mean'])}" in text.split(" mean ")[1]


def test_damaged_scores_are_skipped(reported: Path, tmp_path: Path, run: Run, tiny_clip: Path
                                    ) -> None:
    work = copy_workspace(reported, tmp_path / "base", tiny_clip) / "work"
    for name, changes in (("cams-text-train", {"what": None}), ("gap", {"phi": "x"}),
                          ("predictions-tiny-train", {"miou": None}),
                          ("masks-text-refined-full-train", {"made_under": {"name": "x"}})):
        path = work / f"scores/{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    result = run("report", "--split", "train", "--limit", 1, "--workers", 0, work=work)
    assert result.code == 0, result.err
    assert [line.split(":")[0] for line in result.lines("warning:") if "skipped" in line] == [
        f"{name}.json is skipped" for name in (
            "cams-text-train", "gap", "masks-text-refined-full-train", "predictions-tiny-train")]
    assert "<p>There are no scores." in (work / "report/index.html").read_text("utf-8")


def test_without_true_masks(reported: Path, tmp_path: Path, run: Run, tiny_clip: Path) -> None:
    """No mask is missed, and none is opened where the user does not want it."""
    base = copy_workspace(reported, tmp_path / "base", tiny_clip)
    for path in (base / "masks").iterdir():
        path.write_bytes(b"garbage")
    result = run("report", "--split", "train", "--no-truth", "--workers", 0, work=base / "work")
    assert result.code == 0, result.err
    page = read(base / "work/report/index.html")
    assert not any("iou" in layer for photo in page.photos for layer in photo["layers"])
    assert run("report", "--split", "train", "--workers", 0, work=base / "work").code == 0
    page = read(base / "work/report/index.html")
    assert "cannot be read as a PNG" in page.photos[0]["layers"][-1]["why"]
    (base / "work/images.jsonl").write_text("".join(
        json.dumps(json.loads(line) | {"mask": None}) + "\n"
        for line in (base / "work/images.jsonl").read_text().splitlines()))
    shutil.rmtree(base / "work/scores")
    assert run("report", "--split", "train", "--workers", 0, work=base / "work").code == 0
    page = read(base / "work/report/index.html")
    check_sound(page, base / "work/report")
    assert "There are no scores." in " ".join(" ".join(page.text).split())
    assert page.shown["layers"][-1]["name"] == "predictions/tiny"
    assert "tags" in {attributes["id"] for attributes in page.all("section")}


def test_it_changes_nothing_but_itself(reported: Path, tmp_path: Path, run: Run,
                                       tiny_clip: Path) -> None:
    """A second time all is the same bytes, fewer photos leave no picture, other files are safe."""
    base = copy_workspace(reported, tmp_path / "base", tiny_clip)

    def contents() -> dict[str, bytes]:
        return {str(path.relative_to(base)): path.read_bytes()
                for path in base.rglob("*") if path.is_file()}

    before = contents()
    assert run("report", "--split", "train", "--workers", 0, work=base / "work").code == 0
    assert contents() == before
    assert run("report", "--limit", 1, "--split", "val", work=base / "work").code == 0
    names = {path.name for path in (base / "work/report/pictures").iterdir()}
    assert names == {"000000", "gap-0.png"}
    for name in ("mine.txt", "pictures/wedding.jpg"):
        mine = base / "work/report" / name
        mine.write_text("notes")
        refused = run("report", work=base / "work")
        assert refused.code == 1
        assert "holds files that vpltool did not make" in refused.lines("error:")[0]
        assert "--corrections" not in refused.err
        mine.unlink()


@pytest.mark.parametrize("away", ["the folder", "its photos"])
def test_photos_whose_disk_is_away_replace_nothing(
        away: str, reported: Path, tmp_path: Path, run: Run, tiny_clip: Path) -> None:
    base = copy_workspace(reported, tmp_path / "base", tiny_clip)
    page = (base / "work/report/index.html").read_bytes()
    (base / "photos").rename(base / "elsewhere")
    if away == "its photos":
        (base / "photos").mkdir()
    for command in ("report", "show", "export masks"):
        refused = run(*command.split(), "--split", "train", work=base / "work")
        assert refused.code == 1
        assert ("the folder of the photos, is missing" if away == "the folder" else
                "no photo in ") in refused.err
        assert "see that the disk with the photos is there" in refused.err
    assert (base / "work/report/index.html").read_bytes() == page
    assert len(list((base / "work/report/pictures").iterdir())) > 1
    assert not (base / "work/pictures").exists()


def test_one_file_holds_all(reported: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "all.html"
    result = run("report", "predictions/tiny", "--split", "train", "--one-file", "--out", out,
                 "--workers", 0, work=reported / "work")
    assert result.out.strip() == str(out)
    page = read(out)
    check_sound(page, tmp_path)
    folder = read(reported / "work/report/index.html")
    for photo, other in zip(page.photos, folder.photos, strict=True):
        held = base64.b64decode(photo["picture"].partition("base64,")[2])
        assert held == (reported / "work/report" / other["picture"]).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["all.html"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A report of a photo and a class whose names are HTML, and of a photo that is none."""
    from conftest import run_in_process

    base = tmp_path_factory.mktemp("hostile")
    write_scenes(base, draw_scenes(2))
    (base / "photos/scene0.png").rename(base / f"photos/{HOSTILE_ID}.png")
    (base / "photos/broken.png").write_bytes(b"no picture")
    quoted = HOSTILE.replace('"', '""'), HOSTILE_ID.replace('"', '""')
    (base / "tags.csv").write_text(
        f'id,labels\n"{quoted[1]}","{quoted[0]};box"\nscene1,box\nbroken,box\n')
    (base / "labels").mkdir()
    labels = np.zeros((40, 48), np.uint8)
    labels[:20] = 1
    Image.fromarray(labels).save(base / f"labels/{HOSTILE_ID}.png")
    made = run_in_process("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                          "--pretrained", tiny_clip, work=base / "work")
    assert made.code == 0, made.err
    made = run_in_process("report", base / "labels", "--workers", 0, work=base / "work")
    assert made.code == 0, made.err
    assert "no picture of broken: broken.png" in made.err
    return base / "work/report/index.html"


def test_names_are_never_html(hostile: Path) -> None:
    page = read(hostile)
    check_sound(page, hostile.parent)
    assert len(page.scripts) == 3
    assert not page.all("img")
    assert HOSTILE in page.shown["classes"].values()
    ids = [photo["id"] for photo in page.photos]
    assert HOSTILE_ID in ids
    assert "broken" not in ids, "no tile without a picture"
    assert "Without a picture: broken (broken.png: " in hostile.read_text()
    missing = page.photos[ids.index("scene1")]["layers"][0]
    assert "has no file of this photo" in missing["why"]


def test_numbers_on_axes_are_round_and_enclose_all() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(3.1, 3.1)[0] <= 3.1 <= ticks(3.1, 3.1)[-1]
    for low, high in ((-3, 8), (0.001, 0.0042), (17, 12345)):
        marks = ticks(low, high)
        assert marks[0] <= low < high <= marks[-1]
        assert 3 <= len(marks) <= 8


def test_a_line_is_drawn_where_its_values_are() -> None:
    chart = line_chart("a", "step", [0, 5, 10], {"loss": [1.0, float("nan"), 0.0]})
    (line,) = chart.lines
    assert line.points == f"{chart.left}.0,{chart.top}.0 {chart.right}.0,{chart.bottom}.0"
    assert chart.description == "a, step 0 to 10: loss from 1 to 0"
    many = line_chart("b", "step", list(range(5000)), {"loss": [float(x) for x in range(5000)]})
    assert len(many.lines[0].points.split()) <= 402
    assert many.lines[0].last == "4999"


# In a browser

def js(browser: Any, code: str) -> Any:
    return browser.execute_script(f"return {code}")


def ids_shown(browser: Any) -> list[str]:
    found: list[str] = js(browser,
                          "[...document.querySelectorAll('#grid b')].map(b => b.textContent)")
    return found


def pick(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const box = document.getElementById(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event('change'))", name, value)
    assert js(browser, f"document.getElementById('{name}').value") == value


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def layer_shown(browser: Any) -> str:
    source: str = js(browser,
                     "(document.querySelector('#stack img:nth-child(2)') || {src: ''}).src")
    return source.rpartition("/")[2]


def test_photos_are_sorted_and_filtered(browser: Any, reported: Path) -> None:
    path = reported / "work/report/index.html"
    photos = read(path).photos
    browser.get(path.as_uri())
    assert ids_shown(browser) == [photo["id"] for photo in photos]
    for measure, worst_first in (("iou", True), ("unsure", False), ("apart", False)):
        pick(browser, "sort", f"{measure} 4")
        values = [photo["layers"][4][measure] for photo in photos]
        order = sorted(range(6), key=lambda place: values[place] * (1 if worst_first else -1))
        assert ids_shown(browser) == [photos[place]["id"] for place in order]
    pick(browser, "class", "2")
    wanted = {photo["id"] for photo in photos if 2 in photo["tags"] or any(
        2 in layer.get("found", ()) for layer in photo["layers"])}
    assert set(ids_shown(browser)) == wanted
    pick(browser, "class", "")
    browser.find_element("id", "query").send_keys("SCENE3")
    assert ids_shown(browser) == ["scene3"]


def test_keys_lead_through_the_photos(browser: Any, reported: Path) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get((reported / "work/report/index.html").as_uri())
    browser.find_element("css selector", "#grid button").send_keys(Keys.ENTER)
    assert js(browser, "document.getElementById('viewer').open")
    assert layer_shown(browser) == "4.png", "the furthest result"
    press(browser, "1")
    assert layer_shown(browser) == "0.png"
    assert js(browser, "document.querySelector('#viewer-layers input:checked').value") == "0"
    press(browser, "6", Keys.ARROW_RIGHT)
    assert layer_shown(browser) == "truth.png"
    assert js(browser, "document.getElementById('viewer-title').textContent") == "scene1"
    press(browser, "0")
    assert layer_shown(browser) == ""
    press(browser, "5", "+")
    assert "scale(1.5)" in js(browser, "document.getElementById('stack').style.transform")
    press(browser, Keys.HOME, Keys.ESCAPE)
    assert not js(browser, "document.getElementById('viewer').open")
    # A browser tells of a closed dialog in a task of its own, after the key's.
    WebDriverWait(browser, 10).until(lambda at_page: js(
        at_page, "document.activeElement.querySelector('b')?.textContent") == "scene1")
    alts = js(browser, "[...document.images].map(image => image.alt)")
    assert all(alts)
    assert "photo scene1, tagged box" in alts
    assert any(re.match(r"predictions/tiny: .* \d+\.\d %", alt) for alt in alts)


def test_confusion_is_that_of_the_scores(browser: Any, reported: Path) -> None:
    path = reported / "work/report/index.html"
    browser.get(path.as_uri())
    for number, score in enumerate(read(path).shown["scores"]):
        pick(browser, "confusion-of", str(number))
        counts = np.array(score["confusion"], dtype=float)
        total = counts[0].sum()
        cell = js(browser, "document.querySelector('#confusion-table tbody td').textContent")
        assert cell == (f"{100 * counts[0, 0] / total:.1f}" if counts[0, 0] else "·")


def test_it_loads_nothing_else_and_runs_no_name(browser: Any, hostile: Path, reported: Path
                                                ) -> None:
    for path in (hostile, reported / "work/report/index.html"):
        browser.get_log("browser")
        browser.get(path.as_uri())
        browser.find_element("css selector", "#grid button").click()
        assert js(browser, "document.title").endswith(": report")
        loaded = js(browser, "performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(name.startswith((path.parent.as_uri(), "data:")) for name in loaded)
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_scheme(scheme: str, browser: Any, reported: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True})
    try:
        browser.get((reported / "work/report/index.html").as_uri())
        assert js(browser, "[document.documentElement.scrollWidth, innerWidth]") == [375, 375]
        colour = js(browser, "getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", colour))) > 384
        assert light == (scheme == "light")
        browser.find_element("css selector", "#grid button").click()
        right = js(browser, "document.getElementById('close').getBoundingClientRect().right")
        assert right <= 375
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_thousands_of_photos_load(browser: Any, tmp_path: Path) -> None:
    """Only those of a page are elements; the next page has the next ones."""
    records = [{"id": f"photo{number:05d}", "tags": [1], "picture": f"pictures/{number}.jpg",
                "layers": [{"picture": "p.png", "iou": number / 5000, "areas": [[1, 0.5]],
                            "found": [1]}]} for number in range(5000)]
    empty: dict[str, Any] = dict.fromkeys(
        ("scores", "splits", "iou_classes", "agreement", "charts", "gaps", "artifacts", "facts",
         "unread"), [])
    page = tmp_path / "many.html"
    page.write_text("".join(render_page({
        **empty, "title": "many", "version": "1", "split": "train", "speck": 0.01,
        "photos": iter(records), "shown": {
            "classes": {"0": "background", "1": "cow"}, "colours": {"1": "#123456"}, "start": 0,
            "layers": [{"name": "masks/a", "kind": "labels"}], "scores": []}})), "utf-8")
    browser.get(page.as_uri())
    assert len(ids_shown(browser)) == 60
    browser.find_element("id", "page-after").click()
    assert ids_shown(browser)[0] == "photo00060"
    assert js(browser, "document.getElementById('count').textContent") == "5000 of 5000 photos"
    lazy = js(browser, "[...document.images].every(image => image.loading === 'lazy')")
    assert lazy
