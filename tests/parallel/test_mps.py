"""Apple's GPUs: chosen by `auto`, and never asked for double precision.

There is none here. Its rules are forced on the CPU: tensors that were moved to `mps` are marked, so
is what is computed from them, and a marked tensor in double precision is refused as Apple's is.
"""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from vpltool.core.crf import fastest_backend
from vpltool.errors import VplError
from vpltool.parallel.device import find_device, settle_precision, widest

MPS = torch.device("mps")


class ApplesRules(TorchFunctionMode):
    """Let the CPU stand for `mps`, by its rules; `seen` counts what was computed there."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[int, weakref.ref[torch.Tensor]] = {}
        self.seen = 0

    def _is_marked(self, value: object) -> bool:
        return isinstance(value, torch.Tensor) and (
            (found := self.marked.get(id(value))) is not None and found() is value)

    def __torch_function__(self, func: Callable[..., Any], types: object,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.Tensor.device.__get__ and self._is_marked(args[0]):  # type: ignore[attr-defined]
            return MPS
        given = tree_leaves((args, kwargs or {}))
        asked = [value for value in given if isinstance(value, torch.device)]
        there = any(value.type == "mps" for value in asked) if asked else any(
            map(self._is_marked, given))
        args, kwargs = tree_map(
            lambda value: torch.device("cpu") if isinstance(value, torch.device) and value == MPS
            else value, (args, kwargs or {}))
        if func in (torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist):
            there = False
        made = func(*args, **kwargs)
        if func is torch.Tensor.cpu:
            # On a CPU this is the tensor itself.
            return made.detach()
        if there:
            self.seen += 1
            for value in tree_leaves((made, args[:1] if func.__name__ == "__set__" else ())):
                if isinstance(value, torch.Tensor):
                    if value.dtype == torch.float64:
                        raise TypeError(f"{func}: the MPS framework doesn't support float64")
                    self.marked[id(value)] = weakref.ref(value)
        return made


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApplesRules]:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with ApplesRules() as rules:
        yield rules


def test_auto_takes_it_where_it_can_work(apple: ApplesRules, monkeypatch: pytest.MonkeyPatch
                                         ) -> None:
    assert find_device("auto") == find_device("mps") == MPS
    assert find_device("auto", double=True) == find_device("mps", double=True) == torch.device(
        "cpu")
    assert settle_precision("auto", MPS) == "fp32"
    assert (widest(MPS), widest(torch.device("cpu"))) == (torch.float32, torch.float64)
    assert fastest_backend(MPS) == fastest_backend(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert find_device("auto") == torch.device("cpu"), "processes exchange nothing over it"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(VplError, match="no GPU of Apple's"):
        find_device("mps")


def test_the_rules_are_apple_s(apple: ApplesRules) -> None:
    there = torch.ones(3).to(MPS)
    assert float((there + 1).sum()) == 6
    for wrong in (lambda: there.double(), lambda: (2 * there).to(torch.float64),
                  lambda: torch.zeros(2, dtype=torch.float64, device=MPS),
                  lambda: there.sum(dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            wrong()
    assert there.cpu().double().dtype == torch.float64


COMMANDS: tuple[tuple[object, ...], ...] = (
    ("extract", "--keep", "tokens,patches,attention,attentions,layers"),
    ("extract", "--split", "val", "--keep", "tokens,patches,attention,layers"),
    ("cam",), ("cam", "--method", "dense"), ("cam", "--method", "salient"),
    ("refine", "--cams", "text"),
    ("crf", "--what", "text-refined", "--workers", 0),
    ("seed-prototypes", "--cams", "text-dense", "--phi", 0.5),
    ("tag-prototypes",), ("learn-prototypes", "--iters", 5),
    ("train-decoder", "--masks", "text-refined", "--iters", 2, "--batch-size", 2, "--workers", 0,
     "--name", "steps"),
    ("predict", "--decoder", "steps", "--split", "val"),
    ("train-decoder", "--masks", "text-refined", "--method", "discriminant", "--name", "fitted"),
    ("predict", "--decoder", "fitted", "--split", "val"))


def test_commands_need_no_double_precision_there(run: Run, copied: Path, apple: ApplesRules
                                                 ) -> None:
    for words in COMMANDS:
        before = apple.seen
        result = run(*words, "--overwrite", "--device", "mps", work=copied / "work")
        assert result.code == 0, (words, result.err)
        if words[0] in ("extract", "predict", "cam", "refine"):
            assert apple.seen > before, words


def test_what_it_lacks_is_done_on_the_cpu() -> None:
    """torch reads the variable when it is loaded: before, it must be there."""
    script = ("import sys; sys.platform = 'darwin'; import vpltool, os; "
              "print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'], 'torch' in sys.modules)")
    told = subprocess.run([sys.executable, "-c", script], check=True, text=True,
                          capture_output=True)
    assert told.stdout.split() == ["1", "False"]
