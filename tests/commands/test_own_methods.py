"""Mistakes in somebody's own method are told with its file: settings, results, exceptions."""

from __future__ import annotations

import re
import types
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image
from torch.nn import functional as F

from vpltool import methods, settings
from vpltool.core.phase_one import Pixels
from vpltool.errors import VplError
from vpltool.methods import FOLDERS, KINDS, Estimator, find_methods, load_method, own
from vpltool.methods.faults import changed_tensor, fault_finder, shared_tensors
from vpltool.methods.inputs import CamBatch, EmbeddingBatch, PhotoMaps, ScoredPhoto
from vpltool.methods.labels import find_reader

TEXT, INDEX = torch.eye(3, 4), torch.tensor([0, 1, 2])
PRESENT = [torch.tensor([1]), torch.tensor([1, 2])]
GIVEN: dict[str, tuple[Any, ...]] = {
    "cams": (CamBatch(["a", "b"], (3, 2), {}, PRESENT, TEXT, INDEX),),
    "refiners": (PhotoMaps("a", torch.ones(2, 3, 2), torch.tensor([1, 2]), {}),),
    "embeddings": (EmbeddingBatch(["a", "b"], (3, 2), {}),),
    "estimators": (None, TEXT, INDEX),
    "label_refiners": ([ScoredPhoto(np.zeros((4, 6, 3), np.uint8), np.ones((2, 2, 3), np.float32))],
                       )}
GOOD: dict[str, tuple[Any, ...]] = {
    "cams": ([torch.ones(1, 3, 2), torch.zeros(2, 6, 4)],),
    "refiners": (torch.ones(2, 3, 2),),
    "embeddings": (torch.eye(4)[torch.zeros(2, 6, dtype=torch.long)],),
    "estimators": ((TEXT, INDEX), (TEXT[1:], INDEX[1:]), (TEXT, INDEX, {"context_of": INDEX})),
    "label_refiners": ([np.ones((2, 2, 3), np.float32)],)}
BAD: dict[str, tuple[tuple[Any, str], ...]] = {
    "cams": (
        (None, "None"), (iter([]), "a list_iterator"), ([], "0 maps for 2 photos"),
        ([torch.ones(1, 3, 2), torch.ones(1, 3, 2)], "a Tensor (1, 3, 2) for b, which has 2 class"),
        ([torch.ones(1, 3, 2), torch.ones(2, 3, 1)], "a Tensor (2, 3, 1) for b"),
        ([torch.ones(1, 3, 2), np.ones((2, 3, 2))], "a ndarray (2, 3, 2) for b"),
        ([torch.ones(1, 3, 2), torch.full((2, 3, 2), 7.0)], "values from 7 to 7"),
        ([torch.ones(1, 3, 2), torch.full((2, 3, 2), torch.nan)], "values from nan to nan"),
        ([torch.ones(1, 3, 2), torch.ones(2, 3, 2).byte()], "values from 1 to 1 (torch.uint8)")),
    "refiners": ((None, "None for a"), (torch.ones(2, 0, 0), "a Tensor (2, 0, 0) for a"),
                 (-torch.ones(2, 3, 2), "values from -1 to -1")),
    "embeddings": ((None, "None"), (np.ones((2, 6, 4)), "a ndarray (2, 6, 4)"),
                   (torch.ones(2, 5, 4), "a Tensor (2, 5, 4) for 2 photos on a grid (3, 2)"),
                   (torch.ones(2, 6, 4), "patches whose norms are 2 to 2")),
    "estimators": ((None, "None"), (TEXT, "a Tensor (3, 4)"),
                   ((TEXT.numpy(), INDEX), "a ndarray (3, 4) as rows, where the text has (3, 4)"),
                   ((TEXT[:, :2], INDEX), "a Tensor (3, 2) as rows"),
                   ((TEXT, INDEX[1:]), "a Tensor (2,) as the classes of 3 rows"),
                   ((TEXT, INDEX.float()), "a Tensor of torch.float32, not int64, as the classes"),
                   ((TEXT, INDEX.int()), "a Tensor of torch.int32, not int64, as the classes"),
                   ((TEXT * 3, INDEX), "rows whose norms are 3 to 3"),
                   ((TEXT * torch.tensor([[1], [0], [1]]), INDEX), "rows whose norms are 0 to 1"),
                   ((TEXT * torch.nan, INDEX), "rows with values that are not finite"),
                   ((TEXT.double(), INDEX), "rows of torch.float64, not float32"),
                   ((TEXT, INDEX, {"scale": torch.ones(2)}), "a Tensor (2,) as `scale` of 3 rows"),
                   ((TEXT, INDEX, {"bias": INDEX}), "a Tensor of torch.int64, not float32, as `b"),
                   ((TEXT, [0, 1, 2]), "a list as the classes of 3 rows"),
                   ((TEXT[:2], INDEX[:2]), "no row of class 2"),
                   ((TEXT, INDEX + 1), "rows of class 3, which the text does not have"),
                   ((TEXT, INDEX, {"foo": INDEX}), "`foo`, which is none of context_of")),
    "label_refiners": ((None, "None"), ([], "0 results for 1 photo"), ([None], "None for scores"),
                       ([np.ones((2, 3, 2))], "a ndarray (2, 3, 2) for scores (2, 2, 3)"),
                       ([np.full((2, 2, 3), np.nan)], "values that are not finite"))}


def guarded(kind: str, made: Any) -> Any:
    """The function of a method that returns a value, or raises an exception."""
    def function(given: Any, text: Any = None, *_: Any) -> Any:
        if isinstance(made, BaseException):
            raise made
        return made() if callable(made) else made

    module = types.ModuleType("mine")
    module.Settings = settings.Settings  # type: ignore[attr-defined]
    setattr(module, KINDS[kind].function, function)
    own.guard(module, Path("mine.py"), kind, KINDS[kind].function, KINDS[kind].returns)
    return getattr(module, KINDS[kind].function)


def test_a_method_that_ends_python_is_told() -> None:
    with pytest.raises(VplError, match=r"^mine.py:\d+: SystemExit: 3$"):
        guarded("cams", SystemExit(3))(*GIVEN["cams"])


@pytest.mark.filterwarnings("error")
def test_results_may_have_gradients() -> None:
    for kind in ("refiners", "embeddings"):
        (made,) = GOOD[kind]
        guarded(kind, made.clone().requires_grad_())(*GIVEN[kind])


@pytest.mark.parametrize(("kind", "made"),
                         [(kind, made) for kind, all_ in GOOD.items() for made in all_])
def test_what_fits_passes(kind: str, made: Any) -> None:
    assert guarded(kind, made)(*GIVEN[kind]) is made


@pytest.mark.parametrize(("kind", "made", "said"),
                         [(kind, made, said) for kind, all_ in BAD.items() for made, said in all_])
def test_what_does_not_fit_is_told(kind: str, made: Any, said: str) -> None:
    with pytest.raises(VplError) as caught:
        guarded(kind, made)(*GIVEN[kind])
    where, _, fault = caught.value.message.partition(" returned ")
    assert where.startswith("mine.py:") and fault.startswith(said), caught.value.message
    assert caught.value.hint == f"it returns {KINDS[kind].returns}"


def test_a_wrong_number_of_arguments_is_told() -> None:
    module = types.ModuleType("mine")
    module.Settings = settings.Settings  # type: ignore[attr-defined]
    module.make_cams = lambda batch: []  # type: ignore[attr-defined]
    own.guard(module, Path("mine.py"), "cams", "make_cams", "")
    with pytest.raises(VplError, match=r"^mine.py:\d+: TypeError: .* takes 1 positional argument"):
        module.make_cams(1, 2)


CHANGES = {
    "cams": ("prototypes", "class_index", "of_rows['scale']", "present[1]"),
    "refiners": ("prototypes", "of_rows['scale']", "classes"),
    "estimators": ("text", "embeddings")}
"""Kind to what a method may not change in place."""


@pytest.mark.parametrize(("kind", "name"),
                         [(kind, name) for kind, names in CHANGES.items() for name in names])
def test_a_change_in_place_of_what_others_are_given_is_told(kind: str, name: str) -> None:
    scale = {"scale": torch.ones(3)}
    text, index, tags = TEXT.clone(), INDEX.clone(), [each.clone() for each in PRESENT]
    cams = torch.ones(2, 3, 2)
    given: tuple[Any, ...] = {
        "cams": (CamBatch(["a", "b"], (3, 2), {}, tags, text, index, scale),),
        "refiners": (PhotoMaps("a", cams, tags[1], {}, prototypes=text, class_index=index,
                               of_rows=scale),),
        "estimators": (Pixels(text, index, index, []), text.clone(), index)}[kind]
    tensors = {shown: tensor for shown, tensor, _ in shared_tensors(given, ("pool", "text"))}
    function = guarded(kind, lambda: tensors[name].mul_(2))
    with pytest.raises(VplError, match=re.escape(f"changes `{name}` in place")):
        function(*given)


def test_a_notebook_may_run_methods_in_inference_mode() -> None:
    with torch.inference_mode():
        given = (EmbeddingBatch(["a", "b"], (3, 2), {}),), (None, TEXT.clone(), INDEX.clone())
        for kind, arguments in zip(("embeddings", "estimators"), given, strict=True):
            assert guarded(kind, GOOD[kind][0])(*arguments) is GOOD[kind][0]


@pytest.mark.parametrize("name", find_methods("estimators"))
def test_the_estimators_of_vpltool_keep_to_what_is_checked(name: str) -> None:
    noise, text, labels = torch.Generator().manual_seed(0), torch.eye(4, 8), torch.arange(300) % 4
    pixels = F.normalize(text[labels] + 0.1 * torch.randn(300, 8, generator=noise), dim=-1)
    pool = Pixels(pixels, torch.arange(300) // 60, labels, [torch.tensor([1, 2, 3])] * 5)
    method = load_method(Estimator, name)
    given = (pool, text, torch.arange(4), method.Settings(), 0)
    before = shared_tensors(given, ("pool", "text", "text_index"))
    assert not fault_finder("estimators", method)(given, method.estimate(*given))
    assert not changed_tensor(before)


def test_a_zero_row_of_a_class_without_photos_may_stay() -> None:
    start = TEXT * torch.tensor([[1], [0], [1]])
    assert guarded("estimators", (start, INDEX))(None, start, INDEX)


def test_a_lack_of_memory_is_none_of_its_mistakes() -> None:
    with pytest.raises(MemoryError):
        guarded("cams", MemoryError())(*GIVEN["cams"])


FILE = '''"""Scores as they are."""

from dataclasses import dataclass

import numpy as np

from vpltool import methods, settings
from vpltool.core.phase_one import Pixels
from vpltool.settings import setting

READS = ("photo",)

{settings}


def refine_labels(photos, settings, device):
    return [{result} for photo in photos]
'''
PLAIN = '''
@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """None."""
'''
SETTINGS = {
    PLAIN.replace("(settings.Settings)", ""): "Settings does not inherit vpltool's",
    PLAIN.replace("@dataclass(frozen=True, kw_only=True)\n", "")
    + '    power: float = setting(1.0, "Power.")\n': "Settings is not a dataclass",
    PLAIN + "    power: float = 1.0\n": "`power` is no setting",
    PLAIN + '    power: dict = setting(None, "Power.")\n':
        "the setting `power` has a type that no option has"}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDERS, str(tmp_path / "mine"))
    file = tmp_path / "mine/label_refiners/mine.py"
    file.parent.mkdir(parents=True)
    return file


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_cannot_be_used_are_told(text: str, mine: Path, run: Run) -> None:
    mine.write_text(FILE.format(settings=text, result="photo.scores"))
    result = run("crf", "--method", "mine", "--help")
    assert result.code == 1
    assert result.lines("error:") == [f"{mine}: {SETTINGS[text]}"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_numpy_is_not_blamed_on_the_photos(
        workers: int, mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    mine.write_text(FILE.format(settings=PLAIN, result="np.linalg.inv(photo.scores[0])"))
    result = run("crf", "--what", "cams/text", "--method", "mine", "--workers", workers, work=work)
    assert result.code == 1
    line = len(mine.read_text().splitlines())
    assert result.lines("error:")[0].startswith(f"{mine}:{line}: LinAlgError: ")


def test_no_pixel_is_ignored_unless_the_method_says_so(
        mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    mine.write_text(FILE.format(settings=PLAIN, result="photo.scores"))
    result = run("crf", "--what", "cams/text", "--method", "mine", work=work)
    assert result.code == 0, result.err
    for path in (work / "masks/text/train").glob("*.png"):
        assert 255 not in np.asarray(Image.open(path))


def test_a_changed_file_of_a_method_makes_its_results_stale(
        mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an interrupted run, which would hold files of two versions."""
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    crf = ("crf", "--what", "cams/text", "--method", "mine")
    mine.write_text(FILE.format(settings=PLAIN, result="photo.scores"))
    assert run(*crf, work=work).code == 0
    again = run(*crf, work=work)
    assert again.code == 0 and "done already" in again.err
    mine.write_text(FILE.format(settings=PLAIN, result="photo.scores * 0.5"))
    refused = run(*crf, work=work)
    assert refused.code == 1
    assert "the file of the method has changed" in refused.lines("error:")[0]
    stale = run("status", "--stale", work=work).out
    assert "masks/text/train" in stale and "the file of the method has changed" in stale
    assert run("update", work=work).code == 0
    assert run("status", "--stale", work=work).out == "no result is stale\n"
    # Where the file is not, nobody can say.
    monkeypatch.delenv(FOLDERS)
    assert run("status", "--stale", work=work).out == "no result is stale\n"


def test_a_helper_beside_the_file_is_found_and_counts(
        mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    helper = mine.parent / "_halved_scores.py"
    helper.write_text("def halved(scores):\n    return scores / 2\n")
    mine.write_text(FILE.format(settings=f"from _halved_scores import halved\n{PLAIN}",
                                result="halved(photo.scores)"))
    crf = ("crf", "--what", "cams/text", "--method", "mine", "--workers", 2)
    assert run(*crf, work=work).code == 0
    (mine.parent / "_other.py").write_text("1 / 0")
    assert "done already" in run(*crf, work=work).err
    helper.write_text("def halved(scores):\n    return scores * 0.5\n")
    assert "the file of the method has changed" in run(*crf, work=work).lines("error:")[0]


def test_two_kinds_may_have_helpers_of_one_name(
        mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    other = tmp_path / "mine/cams/other.py"
    other.parent.mkdir()
    (mine.parent / "_shared.py").write_text("FACTOR = 0.5\n")
    (other.parent / "_shared.py").write_text("LEVEL = 0.25\n")
    mine.write_text(FILE.format(settings=f"from _shared import FACTOR\n{PLAIN}",
                                result="photo.scores * FACTOR"))
    other.write_text(FILE[:FILE.index("def")].format(
        settings=f"import torch\nfrom _shared import LEVEL\n{PLAIN}")
        + "def make_cams(batch, settings):\n    return [torch.full((len(present), *batch.grid), "
          "LEVEL) for present in batch.present]\n")
    for words in (("cam", "--method", "other"),
                  ("crf", "--what", "text-other", "--method", "mine")):
        result = run(*words, work=work)
        assert result.code == 0, result.err


def test_a_file_in_another_encoding_is_a_method(
        mine: Path, ready: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    work = copy_workspace(ready, tmp_path / "base", tiny_clip) / "work"
    mine.write_bytes(("# coding: latin-1\n" + FILE.format(
        settings=f"# Grün.\n{PLAIN}", result="photo.scores")).encode("latin-1"))
    assert run("crf", "--what", "cams/text", "--method", "mine", work=work).code == 0


@pytest.mark.parametrize("shape", [(375, 500), (24, 31), (23, 31), (46, 62)])
def test_maps_of_any_resolution_pass(shape: tuple[int, int]) -> None:
    batch = CamBatch(["a"], (23, 31), {}, [torch.tensor([1])], TEXT, INDEX)
    guarded("cams", [torch.rand(1, *shape)])(batch)
    with pytest.raises(VplError, match="a Tensor"):
        guarded("cams", [torch.rand(1, *shape[::-1])])(batch)


@pytest.mark.parametrize("text", ["import no_such_module", "import sys; sys.exit('bye')"])
def test_a_package_that_cannot_be_imported_is_named(
        text: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hinders neither the help of other methods nor the readers of other formats."""
    (tmp_path / "broken_export.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("broken", "broken_export", "vpltool.exports")
    monkeypatch.setattr(methods, "_entry_points", lambda: EntryPoints([entry]))
    methods._by_entry_point.cache_clear()
    try:
        result = run("methods", "exports", "broken")
        assert result.code == 1
        assert str(tmp_path / "broken_export.py") in result.lines("error:")[0]
        with pytest.raises(VplError, match="is in no known format"):
            find_reader(tmp_path / "broken_export.py")
    finally:
        methods._by_entry_point.cache_clear()
