"""What is built: a wheel with every file, from an sdist that suffices; typed for those outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import vpltool

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def build(hook: str, source: Path, into: Path) -> Path:
    """Call a hook of the build backend in a folder, as pip does; the file that it made."""
    code = ("import setuptools.build_meta as backend, sys; "
            f"print(backend.{hook}(sys.argv[1]), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code, str(into)], cwd=source, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return into / done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, which is built from what git holds."""
    base = tmp_path_factory.mktemp("package")
    source = base / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    shutil.copytree(ROOT / "vpltool", source / "vpltool",
                    ignore=shutil.ignore_patterns("__pycache__"))
    sdist = build("build_sdist", source, base)
    with tarfile.open(sdist) as archive:
        archive.extractall(base / "unpacked", filter="data")
    (unpacked,) = (base / "unpacked").iterdir()
    return build("build_wheel", unpacked, base)


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    assert wheel.name == f"vpltool-{vpltool.__version__}-py3-none-any.whl"
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vpltool").rglob("*")
              if path.is_file() and "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = (archive.read(name).decode() for name in archive.namelist()
                     if name.endswith("entry_points.txt"))
    assert held == wanted
    assert {"vpltool/py.typed", "vpltool/demo/clip/open_clip_model.safetensors"} <= held
    assert "vpltool = vpltool.__main__:main" in points


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """A Python in an environment with the wheel; other packages are those of this one.

    A pure wheel is installed by unpacking it. Nothing is downloaded.
    """
    folder = wheel.parent / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Behind the environment's own: the vpltool of this checkout must not be found first.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


def test_installed_it_draws_its_demo(python: Path, tmp_path: Path) -> None:
    """Needs what is not code: the small CLIP. Recipes and presets are listed from the package."""

    def said(*words: str) -> str:
        done = subprocess.run([python, "-m", "vpltool", *words], cwd=tmp_path, check=False,
                              env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run([python, "-c", "import vpltool; print(vpltool.__file__)"], cwd=tmp_path,
                           env={}, capture_output=True, text=True, check=True).stdout
    assert str(python.parents[1]) in where
    assert said("-C", "work", "demo", "--images", "12").strip() == "work/workspace.json"
    assert "own-photos" in said("recipes")
    assert "vpl-voc" in said("presets")


def test_typed_from_outside(python: Path, tmp_path: Path) -> None:
    """Strictly, and with a mistake that must be found; torch is left out, which takes a minute."""
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n[mypy-torch.*]\nfollow_imports = skip\n")

    program = (ROOT / "tests/typed_user.py").read_text("utf-8")
    wrong = program.replace('device="cpu"', "device=0")
    assert wrong != program
    (tmp_path / "user.py").write_text(program)
    (tmp_path / "wrong.py").write_text(wrong)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "--python-executable", python,
         "--cache-dir", os.devnull, "user.py", "wrong.py"], cwd=tmp_path, check=False,
        env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    error, end = (done.stdout + done.stderr).splitlines()
    assert error.startswith("wrong.py:")
    assert '"device" to "load" of "Segmenter" has incompatible type "int"' in error
    assert end == "Found 1 error in 1 file (checked 2 source files)"


def test_what_the_project_says_of_itself_agrees() -> None:
    """Pythons, extras and the Dockerfile's files are named in more than one place."""
    page = (ROOT / "docs/install.md").read_text("utf-8")
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in page
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"]
             if re.search(r"Python :: 3\.\d+$", line)]
    assert named == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert f">={named[0]}" == PROJECT["requires-python"]
    assert f"Python {named[0]} to {named[-1]}" in page
    recipe = (ROOT / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", recipe, flags=re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", recipe)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
