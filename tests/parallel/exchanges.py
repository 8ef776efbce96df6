"""What each rank of `test_ranks.py` runs: every exchange once; then the last one is gone.

It prints the results as JSON.
"""

from __future__ import annotations

import json
import os

import torch
from torch import nn

from vpltool.parallel.ranks import joined


def main() -> None:
    with joined("cpu") as ranks:
        said: dict[str, object] = {"rank": ranks.rank, "shard": str(ranks.shard)}
        said["total"] = ranks.total(torch.tensor([1, ranks.rank])).tolist()
        said["mean"] = ranks.mean(torch.tensor(float(ranks.rank))).item()
        said["any"] = ranks.any(ranks.rank == 1, False)
        said["collect"] = ranks.collect({"of": ranks.rank})
        rows = torch.full((2, 1), float(ranks.rank), requires_grad=True)
        joint = ranks.gather(rows)
        said["gather"] = joint.flatten().tolist()
        # Every rank has the same loss over all rows; the last row's slope is n times its number.
        (joint * torch.arange(1.0, 1 + len(joint))[:, None]).sum().backward()
        assert rows.grad is not None
        said["slopes"] = rows.grad.flatten().tolist()
        torch.manual_seed(0)
        module = nn.Linear(1, 1)
        shared = ranks.share(module)
        shared(torch.full((1, 1), float(ranks.rank))).sum().backward()
        assert module.weight.grad is not None
        said["shared"] = module.weight.grad.item()
        print(json.dumps(said), flush=True)
        if ranks.rank == ranks.count - 1:
            os._exit(9)
        ranks.total(torch.ones(1))


if __name__ == "__main__":
    main()
