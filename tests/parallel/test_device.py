"""Memory: what is done where it does not suffice, and that what is freed is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from vpltool import process
from vpltool.clip.weights import without_random_init
from vpltool.errors import VplError, is_out_of_memory
from vpltool.parallel import device
from vpltool.parallel.batches import Batch, FeatureBatch
from vpltool.parallel.device import find_precision, settle_precision, slowdown_of
from vpltool.parallel.memory import explain_out_of_memory, run_within_memory

CPU_WORDS = ("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
             "memory: you tried to allocate 4398046511104 bytes. Error code 12")


def photos(count: int, first: int = 0, failed: dict[str, str] | None = None) -> Batch:
    ids = [f"p{first + number}" for number in range(count)]
    pixels = torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 3, 32, 48)
    return Batch(ids, pixels, [(30, 48)] * count, failed or {})


def runner(room: int, error: Callable[[], Exception], seen: list[int]) -> Callable[[Batch], Tensor]:
    """A run with room for so many photos; `seen` gets the size of each trial."""
    def run(batch: Batch) -> Tensor:
        seen.append(len(batch))
        if len(batch) > room:
            raise error()
        return batch.pixels[:, 0, 0, 0] * 2

    return run


SHORTAGES: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    lambda: RuntimeError(CPU_WORDS), lambda: RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED"),
    MemoryError)


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error()).__name__)
def test_halved_until_it_fits_and_told_once(error: Callable[[], Exception]) -> None:
    told: list[str] = []
    seen: list[int] = []
    batches = [photos(8), photos(7, 8), photos(2, 15)]
    done = list(run_within_memory(batches, runner(3, error, seen), warn=told.append, too_large=str))
    assert [part.ids for part, _ in done] == [
        [f"p{number}" for number in group] for group in (
            (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (14,), (15, 16))]
    assert torch.cat([result for _, result in done]).tolist() == [2 * n for n in range(17)]
    assert seen[:2] == [8, 4], "the first trials"
    assert max(seen[2:]) == 2, "the size that fits is kept"
    assert told == ["out of memory with 8 photos of 48×32 pixels: continuing with 2 at a time; "
                    "next time `batch_size=2`"]


def test_nothing_is_halved_where_the_memory_suffices() -> None:
    told: list[str] = []
    seen: list[int] = []
    batches = [photos(4), photos(3, 4)]
    run = runner(4, MemoryError, seen)
    done = list(run_within_memory(batches, run, warn=told.append, too_large=str))
    assert [part for part, _ in done] == batches
    assert (seen, told) == ([4, 3], [])


def test_one_photo_that_does_not_fit_is_told_and_the_others_are_run() -> None:
    told: list[str] = []

    def run(batch: Batch) -> str:
        if "p1" in batch.ids:
            raise SHORTAGES[0]()
        return "made"

    done = run_within_memory([photos(3)], run, warn=told.append,
                             too_large=lambda batch: f"{batch.each} do not fit")
    assert [(part.ids, result) for part, result in done] == [
        (["p0"], "made"), (["p1"], "48×32 pixels do not fit"), (["p2"], "made")]
    assert told == ["out of memory with 3 photos of 48×32 pixels: continuing with 1 at a time; "
                    "next time `batch_size=1`"]


def test_other_errors_are_left_alone() -> None:
    for wrong in (RuntimeError("shapes cannot be multiplied"), ValueError("out of memory")):
        assert not is_out_of_memory(wrong)
        with pytest.raises(type(wrong), match=str(wrong)):
            list(run_within_memory([photos(4)], runner(1, lambda wrong=wrong: wrong, []),  # type: ignore[misc]
                         warn=print, too_large=str))


def test_what_a_failed_run_held_is_freed_before_the_next() -> None:
    """A traceback holds the tensors of its frames: it must be gone when the halves are run."""
    import weakref

    held: list[weakref.ref[Tensor]] = []

    def run(batch: Batch) -> int:
        assert all(item() is None for item in held)
        big = torch.zeros(len(batch), 100)
        held.append(weakref.ref(big))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(batch)

    done = run_within_memory([photos(4)], run, warn=str, too_large=str)
    assert [count for _, count in done] == [1] * 4


def test_photos_that_failed_are_named_once() -> None:
    batches = [photos(4, failed={"bad": "torn"}), photos(0, failed={"worse": "empty"})]
    run = runner(2, MemoryError, [])
    done = [part for part, _ in run_within_memory(batches, run, warn=str, too_large=str)]
    assert [part.failed for part in done] == [{"bad": "torn"}, {}, {"worse": "empty"}]


def test_features_are_taken_apart() -> None:
    batch = FeatureBatch(["a", "b", "c"], (2, 3), {"patches": torch.arange(18).view(3, 6)})
    parts = batch.split(2)
    assert [part.ids for part in parts] == [["a", "b"], ["c"]]
    assert [part.grid for part in parts] == [(2, 3), (2, 3)]
    assert torch.cat([part.tensors["patches"] for part in parts]).equal(batch.tensors["patches"])
    assert batch.each == "3×2 patches"
    (empty,) = FeatureBatch([], (0, 0), {}, {"bad": "torn"}).split(2)
    assert empty.failed == {"bad": "torn"}


def test_batches_are_halved_as_they_come() -> None:
    """The memory of a batch that is not asked for yet is not taken."""
    asked: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(3):
            asked.append(number)
            yield photos(2, 2 * number)

    found = run_within_memory(batches(), runner(1, MemoryError, []), warn=str, too_large=str)
    next(found)
    assert asked == [0]
    next(found)
    assert asked == [0]
    next(found)
    assert asked == [0, 1]


def test_naming() -> None:
    with (pytest.raises(VplError, match="out of memory with 6 crops") as caught,
          explain_out_of_memory("6 crops", "--batch-size 3")):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert caught.value.hint == "--batch-size 3"
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("6 crops", ""):
        raise RuntimeError("shapes do not match")


FAULTS = """
import resource, torch
from vpltool import process
from vpltool.parallel.device import find_device
process.mark_own()
find_device("cpu")
torch.ones(5_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    # 20 MB each, the first of them still there when the second is asked for.
    (torch.ones(5_000_000), torch.ones(5_000_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems are left alone")
@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_kept_for_the_next_tensor(own: bool) -> None:
    """Else each page of each tensor is mapped again, 4,900 of them; what the user sets wins."""
    own_words = {"MALLOC_MMAP_THRESHOLD_": "65536"} if own else {}
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("MALLOC_")}
    told = subprocess.run([sys.executable, "-c", FAULTS], check=True, text=True,
                          capture_output=True, env=environment | own_words)
    assert (int(told.stdout) > 20 * 9000) == own


def test_a_program_that_imports_us_frees_its_memory_as_before(monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    called: list[bool] = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: called.append(process.is_own()))
    for own in ([], [True]):
        monkeypatch.setattr(process, "_own", own)
        device.find_device("cpu")
    assert called == [True]


def test_unfilled_parameters_cost_no_random_numbers() -> None:
    drawn = torch.get_rng_state()
    with without_random_init():
        layers = [nn.Linear(4, 3), nn.Conv2d(3, 4, 2), nn.Embedding(5, 2), nn.LayerNorm(3),
                  nn.MultiheadAttention(4, 2)]
        nn.init.trunc_normal_(nn.Parameter(torch.empty(3)), std=0.1)
        nn.init.normal_(torch.empty(3))
        torch.empty(3).normal_()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(layers[3].weight, torch.ones(3)), "what is not random stays"
    nn.Linear(4, 3)
    assert not torch.equal(torch.get_rng_state(), drawn)


def test_bounded_initialisation_ends() -> None:
    """torch 2.13 draws a truncated normal again until every value lies within its bounds."""
    with without_random_init():
        for bounds in ({"std": 0.02}, {"mean": 1.0, "a": 2.0, "b": 2.1}):
            weight = nn.init.trunc_normal_(torch.full((30, 4), 99.0), **bounds)
            assert float(weight.max()) <= 2.1


@pytest.mark.parametrize(("slower", "told"), [
    (70.4, ["bf16 is about 70 times slower than fp32 on this CPU, which lacks the instructions for "
            "it: `precision='fp32'`"]),
    (0.5, [])])
def test_a_slow_precision_is_told_and_taken(slower: float, told: list[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[torch.dtype] = []

    def slowdown(precision: torch.dtype) -> float:
        measured.append(precision)
        return slower

    monkeypatch.setattr(device, "slowdown_of", slowdown)
    cpu, found = torch.device("cpu"), list[str]()
    assert find_precision("bf16", cpu, found.append) == torch.bfloat16
    assert found == told
    assert find_precision("fp32", cpu, found.append) == torch.float32
    assert find_precision("bf16", torch.device("cuda"), found.append) == torch.bfloat16
    assert find_precision("bf16", cpu) == torch.bfloat16
    assert (found, measured) == (told, [torch.bfloat16])


@pytest.mark.parametrize(("slower", "capability", "taken"), [
    (0.3, (9, 0), "bf16"), (0.9, (8, 0), "bf16"), (4.0, (7, 5), "fp32"), (70.4, (6, 1), "fp32")])
def test_auto_is_bf16_where_the_device_computes_in_it(
    slower: float, capability: tuple[int, int], taken: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "slowdown_of", lambda _precision: slower)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    told = list[str]()
    for where in (torch.device("cpu"), torch.device("cuda")):
        assert settle_precision("auto", where) == taken
        assert find_precision("auto", where, told.append) == device.dtype_of(taken)
        assert settle_precision("fp32", where) == "fp32"
    assert not told


@pytest.mark.parametrize(("slower", "there", "taken"), [
    (0.3, "fp32", "fp32"), (1.6, "bf16", "bf16"), (70.4, "bf16", "fp32"), (0.3, "", "bf16")])
def test_auto_keeps_to_what_is_there(slower: float, there: str, taken: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless that takes more than twice as long here."""
    monkeypatch.setattr(device, "slowdown_of", lambda _precision: slower)
    assert settle_precision("auto", torch.device("cpu"), there) == taken


def test_threads_are_as_before_the_measurement() -> None:
    before = torch.get_num_threads()
    slowdown_of.cache_clear()
    assert slowdown_of(torch.bfloat16) > 0
    assert torch.get_num_threads() == before


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other instructions")
def test_a_cpu_without_the_instructions_is_found_slow() -> None:
    """oneDNN is told to do without AVX-512, as on a CPU that has none."""
    script = ("import torch; from vpltool.parallel.device import find_precision; "
              "find_precision('bf16', torch.device('cpu'), print)")
    told = subprocess.run([sys.executable, "-c", script], check=True, text=True,
                          capture_output=True,
                          env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert "times slower than fp32" in told.stdout


def test_a_gpu_sums_in_a_fixed_order_and_only_while_asked() -> None:
    for found, fixed in ((None, False), ("cpu", False), ("cuda", True)):
        with device.fixed_order(found and torch.device(found)):
            assert torch.are_deterministic_algorithms_enabled() == fixed
            assert torch.backends.cuda.flash_sdp_enabled() != fixed
            assert torch.utils.deterministic.fill_uninitialized_memory != fixed
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(("count", "visible", "wanted"), [
    (4, "", "cuda:1"), (4, "0,1,2,3", "cuda:1"), (1, "3", "cuda"), (1, "", "no such"),
    (1, "3", "no such")])
def test_each_process_of_torchrun_takes_its_gpu(count: int, visible: str, wanted: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm may show each process its own alone, as the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2" if wanted == "no such" else "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if wanted == "no such":
        with pytest.raises(VplError, match="cuda:1: 1 CUDA devices found"):
            device.find_device("auto")
    else:
        assert device.find_device("auto") == torch.device(wanted)
