"""The page of `review` in Chromium: tools, keys, reload, a kill, two windows, a narrow window."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import copy_workspace
from review_server import TOKEN, Client, start_process

from vpltool.formats import describe, read_labels
from vpltool.review.desk import Desk
from vpltool.review.server import ReviewServer

CLOSE = "document.querySelectorAll('dialog[open]').forEach(one => one.close())"

class Window:
    """A window of the browser with the page in it."""

    def __init__(self, browser: Any, port: int, work: Path) -> None:
        self.browser, self.client, self.work = browser, Client(port), work
        self.base = f"http://127.0.0.1:{port}/"
        # The browser is the session's: tests of other pages may have made it narrow.
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.set_window_size(1200, 900)
        self.visit()

    def visit(self, path: str = f"?token={TOKEN}") -> None:
        self.browser.get(self.base + path)
        self.client.until(lambda: self.js("return document.body.classList.contains('ready')"), 20)
        self.js(CLOSE)
        self.client.until(lambda: self.js("return Boolean(review.canvas.regions)"), 20)

    def js(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def saved(self) -> None:
        self.client.until(lambda: self.js("return review.queue.size === 0"), 20)

    def click(self, selector: str) -> None:
        self.browser.find_element("css selector", selector).click()

    def keys(self, *keys: str, at: str = "body") -> None:
        if at != "body":
            self.js(f"document.querySelector('{at}').focus()")
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def drag(self, *steps: tuple[int, int], hold: bool = False) -> None:
        from selenium.webdriver import ActionChains

        stage = self.browser.find_element("id", "stage")
        chain = ActionChains(self.browser, duration=20).move_to_element_with_offset(
            stage, *steps[0]).click_and_hold()
        for x, y in zip(steps[1:], steps, strict=False):
            chain.move_by_offset(x[0] - y[0], x[1] - y[1])
        (chain if hold else chain.release()).perform()

    def correction(self, key: str = "scene0") -> Any:
        path = self.work / f"corrections/{key}.png"
        try:
            return read_labels(path) if path.exists() else None
        except FileNotFoundError:
            # The server has taken it away in between.
            return None

    def check_quiet(self) -> None:
        """Nothing failed in the page, and its policy stopped nothing."""
        said = [entry["message"] for entry in self.browser.get_log("browser")]
        assert [one for one in said if "Failed to load resource" not in one
                and "ERR_CONNECTION" not in one] == []

@pytest.fixture
def base(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip)

@pytest.fixture
def window(browser: Any, base: Path) -> Iterator[Window]:
    server = ReviewServer(Desk(base / "work", "", "train", "file"), "127.0.0.1", 0, TOKEN)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    found = Window(browser, server.server_port, base / "work")
    yield found
    found.check_quiet()
    browser.get("about:blank")
    server.shutdown()
    server.server_close()

def test_click_undo_redo_reload(window: Window) -> None:
    before = np.array(window.js("return [...review.canvas.labels]"))

    window.keys("u")
    window.drag((0, 0))
    window.saved()
    found = window.correction()
    assert (found == 255).any() and (found != before.reshape(found.shape)).sum() > 3
    header = describe(window.work / "corrections/scene0.png").header
    assert header is not None and header.supervision == "a corrected mask"
    window.keys("z")
    window.client.until(lambda: window.correction() is None)
    window.keys("y")
    window.client.until(lambda: window.correction() is not None)
    assert (window.correction() == found).all()
    window.keys("z", "y")  # the second before the first is answered
    window.saved()
    window.client.until(lambda: window.correction() is not None)
    assert (window.correction() == found).all()
    window.visit("")
    window.keys("p")
    window.client.until(lambda: window.js(
        "return document.querySelector('#history li').textContent") == "region: unlabelled")
    assert window.js("return [...review.canvas.labels]") == found.ravel().tolist()
    assert window.js("return performance.getEntriesByName('open').at(-1).duration") < 5000

def test_a_button_is_the_same_while_it_is_pressed(window: Window) -> None:
    """What is saved meanwhile replaces no button under the mouse: the click would be lost."""
    from selenium.webdriver import ActionChains

    button = window.browser.find_element("id", "class-1")
    window.keys("u")
    window.drag((0, 0))
    ActionChains(window.browser).click_and_hold(button).perform()
    window.saved()
    ActionChains(window.browser).release().perform()
    assert window.js("return document.querySelector('#class-1').ariaPressed") == "true"

def test_brush_eraser_and_polygon(window: Window) -> None:
    window.keys("u")
    window.click("[data-tool=brush]")
    window.drag((-100, -60), (0, 0), (60, 40))
    window.saved()
    brushed = (window.correction() == 255).sum()
    assert brushed > 8
    window.click("[data-tool=eraser]")
    window.drag((-100, -60), (-80, -50))
    window.saved()
    assert 0 < (window.correction() == 255).sum() < brushed
    window.keys("g")
    for corner in ((-150, -150), (150, -150), (150, 150), (-150, 150)):
        window.drag(corner)
    from selenium.webdriver.common.keys import Keys

    window.keys(Keys.ENTER)
    window.saved()
    assert (window.correction() == 255).sum() > brushed
    whole = window.js("return document.querySelectorAll('#history li').length")
    assert whole == 3

def test_a_kill_in_the_middle_of_a_stroke(browser: Any, base: Path) -> None:
    """The stroke waits in the window, says so, and is saved by the next server."""
    from selenium.webdriver import ActionChains

    child, port = start_process(base / "work")
    try:
        window = Window(browser, port, base / "work")
        window.keys("u")
        window.click("[data-tool=brush]")
        window.drag((-100, -60), (0, 0), hold=True)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        ActionChains(browser).release().perform()
        window.client.until(lambda: "not saved" in window.js(
            "return document.querySelector('#saved').textContent"))
        assert "does not answer" in window.js(
            "return document.querySelector('#banner').textContent")
        assert window.correction() is None
        child, _ = start_process(base / "work", port)
        window.saved()
        assert (window.correction() == 255).sum() > 8
        browser.get("about:blank")
    finally:
        child.kill()
        child.wait()

def test_two_windows_at_once(window: Window) -> None:
    browser, first = window.browser, window.browser.current_window_handle
    browser.switch_to.new_window("tab")
    window.visit("")
    window.keys("u")
    window.drag((0, 0))
    window.saved()
    painted = window.correction()
    browser.switch_to.window(first)
    window.client.until(lambda: window.js("return [...review.canvas.labels]")
                        == painted.ravel().tolist())
    # A change against an old state is refused, and the page shows what is there.
    window.js("review.queue.versions.set('scene0', 0)")
    window.keys("m")
    window.client.until(lambda: "another window" in window.js(
        "return document.querySelector('#banner').textContent"))
    assert (window.correction() == painted).all()
    for handle in set(browser.window_handles) - {first}:
        browser.switch_to.window(handle)
        browser.close()
    browser.switch_to.window(first)

def test_a_photo_deleted_meanwhile(window: Window, base: Path) -> None:
    next((base / "photos").glob("scene3.*")).unlink()
    window.js("document.querySelector('#row-3').click()")
    window.client.until(lambda: "scene3" in window.js(
        "return document.querySelector('#message').textContent"))
    window.keys("n")
    window.client.until(lambda: window.js("return document.querySelector('#photo').alt")
                        == "Photo scene4")

def test_keyboard_alone(window: Window) -> None:
    """From the first key to the saved mask, and on to the next photo."""
    from selenium.webdriver.common.keys import Keys

    window.keys(Keys.ENTER, at=".skip")
    assert window.js("return document.activeElement.id") == "stage"
    window.keys("u", Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.SPACE)
    window.saved()
    assert (window.correction() == 255).any()
    assert "unlabelled" in window.js("return document.querySelector('#where').textContent")
    window.keys(Keys.ENTER)
    window.client.until(lambda: window.js(
        "return document.querySelector('#photo').alt") == "Photo scene1")
    window.client.until(lambda: window.js("return Boolean(review.canvas.regions)"))
    window.keys("k", "?")
    window.client.until(lambda: window.js("return document.querySelector('#help').open"))
    window.saved()
    assert window.js("return document.querySelector('#row-1').dataset.state") == "skipped"
    window.js(CLOSE)
    shown = "return getComputedStyle(document.querySelector('#mask')).display"
    from selenium.webdriver import ActionChains

    ActionChains(window.browser).key_down("h").perform()
    assert window.js(shown) == "none"
    ActionChains(window.browser).key_up("h").perform()
    assert window.js(shown) == "block"

def test_names_for_a_screen_reader(window: Window) -> None:
    unnamed = window.js("""
        return [...document.querySelectorAll('button, select, input, [role], dialog, nav, aside')]
            .filter(one => one.offsetParent && !(one.ariaLabel || one.textContent.trim()
                || one.labels?.length || one.getAttribute('aria-labelledby')))
            .map(one => one.outerHTML)""")
    assert unnamed == []
    assert window.js("return document.querySelector('#row-0').ariaLabel").endswith("not seen")
    assert window.js("return document.querySelector('#list').getAttribute("
                     "'aria-activedescendant')") == "row-0"
    assert window.js("return document.querySelector('#stage').ariaLabel").startswith("Photo")
    tree = window.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {node["role"]["value"] for node in tree if not node.get("ignored")}
    assert {"radio", "listbox", "option", "navigation", "application", "toolbar"} <= roles

@pytest.mark.parametrize("width", [400, 700])
def test_a_narrow_window(window: Window, width: int) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    window.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        window.visit("")
        outside = window.js("""
            return [...document.querySelectorAll('button')].filter(one => one.offsetParent
                && (one.getBoundingClientRect().right > innerWidth + 1
                    || one.getBoundingClientRect().left < -1)).map(one => one.id)""")
        assert outside == []
        assert window.js("return document.documentElement.scrollWidth") <= width
        window.click("#menu")
        assert window.js("return document.querySelector('#list').offsetHeight") > 100
    finally:
        window.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

def test_train_again(window: Window) -> None:
    """The button trains; progress shows, new masks come, and what was seen stays as it is."""
    window.keys("u")
    window.drag((0, 0))
    window.saved()
    painted = window.correction()
    old = read_labels(window.work / "masks/text-refined-full/train/scene3.png")
    window.click("#train")
    window.click("#begin")
    window.client.until(lambda: window.js("return !document.querySelector('#bar').hidden"))
    step = "return document.querySelector('#step').textContent"
    said = {window.js(step)}
    window.client.until(lambda: said.add(window.js(step)) or window.js(step).startswith(
        ("Done", "Failed")), 300)
    assert any("update" in one for one in said) and window.js(step).startswith("Done"), said
    window.click("#close")
    window.client.until(lambda: window.js("return document.querySelector('#shown').textContent")
                        .startswith("predictions/tiny"))
    assert window.js("return document.querySelectorAll('#curve circle').length") == 2
    window.client.until(lambda: window.js("return review.canvas.labels.length") == painted.size)
    assert window.js("return [...review.canvas.labels]") == painted.ravel().tolist()
    assert window.js("return document.querySelector('#row-0').dataset.state") == "corrected"
    window.js("document.querySelector('#row-3').click()")
    window.client.until(lambda: window.js("return document.querySelector('#photo').alt")
                        == "Photo scene3")
    new = read_labels(window.work / "predictions/tiny/train/scene3.png")
    labels = "return [...review.canvas.labels]"
    assert window.js(labels) == new.ravel().tolist()
    # The button is held: the masks of before are drawn, and the labels stay.
    assert window.js("return document.querySelector('#layer').value") == "before training 1"
    drawn = "return review.canvas.mask.toDataURL()"
    shown = window.js(drawn)
    from selenium.webdriver import ActionChains

    button = window.browser.find_element("id", "compare")
    ActionChains(window.browser).click_and_hold(button).perform()
    window.client.until(lambda: "before training 1" in window.js(
        "return document.querySelector('#where').textContent"))
    assert (window.js(drawn) != shown) is bool((old != new).any())
    ActionChains(window.browser).release().perform()
    window.client.until(lambda: window.js(drawn) == shown)

def test_ten_thousand_photos(browser: Any, base: Path) -> None:
    """Only the rows in sight exist, wherever the list is scrolled to."""
    listed = base / "work/images.jsonl"
    first = json.loads(listed.read_text().splitlines()[0])
    listed.write_text("".join(json.dumps(first | {"id": f"photo{number:05}"}) + "\n"
                              for number in range(10_000)))
    server = ReviewServer(Desk(base / "work", "", "train", "file"), "127.0.0.1", 0, TOKEN)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    window = Window(browser, server.server_port, base / "work")
    assert window.js("return document.querySelector('#count').textContent") == "0 of 10000"
    most, top = window.browser.execute_async_script("""
        const done = arguments[0], list = document.querySelector('#list');
        let most = 0, frames = 0;
        const next = () => {
            list.scrollTop += 20000;
            most = Math.max(most, document.querySelectorAll('.row-photo').length);
            if (++frames < 60) requestAnimationFrame(next);
            else setTimeout(() => done([most, list.scrollTop]), 100);
        };
        next();""")
    assert most < 40 and top > 700_000
    last = "return document.querySelector('#row-9999')?.textContent ?? ''"
    window.client.until(lambda: window.js(last).startswith("photo09999"))
    window.js("document.querySelector('#row-9999').click()")
    window.client.until(lambda: window.js("return document.querySelector('#photo').alt")
                        == "Photo photo09999")
    window.check_quiet()
    browser.get("about:blank")
    server.shutdown()
    server.server_close()
