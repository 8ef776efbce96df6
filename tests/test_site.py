"""The documentation as a site: pages that are printed do not drift, and nothing asks a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import environment
from test_docs import ROOT

from vpltool.reference import pages
from vpltool.stages import find_stages

PRINTED = pages()
OUTSIDE = re.compile(r"""(?:src=|<link[^>]*href=|url\(|@import |import\()\s*["']?(?:https?:)?//""")


@pytest.mark.parametrize("name", PRINTED)
def test_printed_pages_are_as_the_product_is(name: str) -> None:
    """Made by: python -m vpltool.reference docs/reference"""
    assert (ROOT / "docs/reference" / name).read_text("utf-8") == PRINTED[name]


def test_no_page_was_printed_by_an_earlier_version() -> None:
    assert {path.name for path in (ROOT / "docs/reference").iterdir()} == {*PRINTED}


@pytest.mark.parametrize("name", list(find_stages()))
def test_every_setting_is_on_the_page_of_commands(name: str) -> None:
    section = PRINTED["commands.md"].split(f"\n### {name}\n")[1].split("\n### ")[0]
    for field in vars(find_stages()[name].stage.settings)["__dataclass_fields__"].values():
        if "vpltool" in field.metadata and field.name != "method":
            assert f"| `{field.name}` |" in section


def test_the_notebook_is_its_page() -> None:
    """Made by: jupytext --to ipynb docs/notebook.md"""
    jupytext = pytest.importorskip("jupytext")
    page, notebook = (jupytext.read(ROOT / f"docs/notebook.{suffix}") for suffix in ("md", "ipynb"))
    assert [(cell.cell_type, cell.source) for cell in page.cells] == [
        (cell.cell_type, cell.source) for cell in notebook.cells]
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    score = re.search(r"mIoU (\d+\.\d)", str(said))
    assert score and float(score[1]) > 10
    assert any("image/png" in output.get("data", {}) for output in said)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it, with proxies that lead nowhere."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder], cwd=ROOT,
        env=os.environ | nowhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_asks_no_network(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 25
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = OUTSIDE.search(path.read_text("utf-8"))
        assert not found, f"{path}: {found and found[0]}"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_site_is_searched_from_disk(site: Path, browser: Any, width: int, height: int) -> None:
    """At the size of a desk and of a phone, on a page that is not at the top."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.set_window_size(width, height)
    browser.get((site / "reference/commands.html").as_uri())
    # Before the search opens: while it does, the page's scroll bar goes, and its widths differ.
    over = browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert over <= 0
    browser.execute_script("""
        document.getElementById("__search").click()
        const box = document.querySelector(".md-search__input")
        box.focus(); box.value = "Label Studio"; box.dispatchEvent(new Event("keyup"))""")
    links = WebDriverWait(browser, 20).until(lambda page: page.execute_script(
        "return [...document.querySelectorAll('.md-search-result__link')].map(l => l.href)"))
    assert any("labelling.html" in link for link in links)
    if shots := os.environ.get("VPLTOOL_SCREENSHOTS"):
        browser.save_screenshot(f"{shots}/search-{width}.png")
        browser.get((site / "index.html").as_uri())
        browser.save_screenshot(f"{shots}/index-{width}.png")
