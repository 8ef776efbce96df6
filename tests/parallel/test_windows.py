"""The same pipeline in a Python without what Windows lacks; it was not run on Windows itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw_scenes, write_scenes

import vpltool
from vpltool.parallel.signals import begin_worker, block_interrupts

MODULES = ("fcntl", "grp", "pwd", "resource", "syslog", "termios", "tty")
CALLS = {"os": ("chown", "fchmod", "fchown", "fork", "geteuid", "getloadavg", "getpgid", "getuid",
                "killpg", "mkfifo", "posix_fallocate", "pread", "sched_getaffinity", "setsid",
                "statvfs", "sysconf"),
         "signal": ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm",
                    "pthread_kill", "pthread_sigmask", "setitimer", "sigwait")}
RESERVED = {"aux", "con", "nul", "prn", *(f"{port}{number}" for port in ("com", "lpt")
                                          for number in range(1, 10))}

WITHOUT = f"""
# Those that use it to be imported have it; what they call later, they have not.
import asyncio, os, signal, sys, shutil, subprocess, tempfile, multiprocessing, numpy
multiprocessing.set_start_method("spawn", force=True)
disk = shutil.disk_usage(".")
shutil.disk_usage = lambda _folder: disk
sys.modules.update(dict.fromkeys({MODULES}))
for module, names in {CALLS}.items():
    for name in names:
        delattr(sys.modules[module], name)
"""


@pytest.fixture
def windows(tmp_path: Path) -> dict[str, str]:
    """Environment of such a Python, and of each worker that it starts."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(WITHOUT)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(
        [str(tmp_path / "without"), str(Path(vpltool.__file__).parents[1])])}


COMMANDS = """
import json, sys
from vpltool.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["vpltool", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, words
"""


def run_there(windows: dict[str, str], work: Path, *commands: tuple[object, ...]) -> str:
    """Run commands in such a Python, one after another; what they said."""
    lines = [["-C", str(work), *map(str, words)] for words in commands]
    done = subprocess.run([sys.executable, "-c", COMMANDS, json.dumps(lines)], env=windows,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_photos_become_masks_and_a_segmenter(tmp_path: Path, tiny_clip: Path,
                                             windows: dict[str, str]) -> None:
    write_scenes(tmp_path, draw_scenes())
    tags = (tmp_path / "tags.csv").read_bytes()
    (tmp_path / "tags.csv").write_bytes(tags.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    work = tmp_path / "work"
    said = run_there(windows, work, (
        "run", "own-photos", f"photos={tmp_path / 'photos'}", f"tags={tmp_path / 'tags.csv'}",
        f"pretrained={tiny_clip}"), ("crf", "--what", "seeds", "--workers", 2), ("doctor",))
    assert len(list((work / "masks/seeds-refined-full/train").glob("*.png"))) == 6
    assert (work / "decoder/segmenter.safetensors").exists()
    assert len(list((work / "masks/seeds-full/train").glob("*.png"))) == 6
    assert "Python" in said and "files each" not in said


def test_no_file_has_a_name_that_windows_reserves() -> None:
    root = Path(vpltool.__file__).parent
    names = [path.relative_to(root) for path in root.rglob("*")]
    assert not [name for name in names if name.stem.lower() in RESERVED]
    assert not [name for name in names if set(str(name)) & set('<>:"|?*\\')]
    assert max(len(str(name)) for name in names) < 100, "Windows has 260 characters for a path"


def test_a_worker_leaves_ctrl_c_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.delattr(signal, "pthread_sigmask")
    try:
        with block_interrupts():
            pass
        assert signal.getsignal(signal.SIGINT) is before
        begin_worker()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
