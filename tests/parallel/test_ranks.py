"""Exchanges among processes, and what happens when one of them ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import start

from vpltool.parallel.ranks import Ranks, joined, rank_of_process

SCRIPT = Path(__file__).with_name("exchanges.py")


@pytest.fixture(scope="module")
def ended() -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of three ranks, the last of which ends without a word."""
    ranks = start(3, [SCRIPT])
    said = [rank.communicate(timeout=120) for rank in ranks]
    return [(rank.returncode, *words) for rank, words in zip(ranks, said, strict=True)]


def test_exchanges(ended: list[tuple[int, str, str]]) -> None:
    for rank, (_, out, _) in enumerate(ended):
        assert json.loads(out) == {
            "rank": rank, "shard": f"{rank}/3", "total": [3, 3], "mean": 1.0,
            "any": [True, False], "collect": [{"of": 0}, {"of": 1}, {"of": 2}],
            "gather": [0.0, 0.0, 1.0, 1.0, 2.0, 2.0],
            "slopes": [3 * (2.0 * rank + 1), 3 * (2.0 * rank + 2)], "shared": 1.0}


def test_a_rank_that_ends_ends_the_others(ended: list[tuple[int, str, str]]) -> None:
    assert [code for code, _, _ in ended] == [1, 1, 9]
    for rank in (0, 1):
        assert f"rank {rank} of 3 ends, since another one has ended" in ended[rank][2]


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, or as its only process, nothing is exchanged and no group is made."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert rank_of_process() == (0, 1)
    with joined("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        row, module = torch.ones(2), torch.nn.Linear(1, 1)
        assert ranks.gather(row) is ranks.total(row) is ranks.mean(row) is row
        assert ranks.share(module) is module
        assert (ranks.collect("a"), ranks.any(True, False)) == (["a"], [True, False])
        assert not torch.distributed.is_initialized()
