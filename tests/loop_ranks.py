"""Two processes that train replicas of the toy: python loop_ranks.py RANK STORE RUN_DIR|- OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from entropy_lab import Probe, TokenBatch
from toy import Toy, batches, score_of


def main(rank: int, store: str, run_dir: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = Toy()
    model.register_buffer("seen", torch.zeros(1))  # so that a forward of DDP sends a message
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    score = score_of(ddp)
    probe = Probe(ddp, optimizer, run_dir, score, floor_every=2) if run_dir != "-" else None
    for step in range(4):
        model.seen += rank + 1  # DDP makes it rank 0's at each forward of the loss
        rows, b = batches(model, 10 * step + rank, 16)[0]
        with torch.no_grad():
            old = score_of(model)(rows).logp
        batch = TokenBatch(b.token_id, b.mask, b.advantage, old)
        stats = probe.record(rows, batch) if probe else score(rows)
        (-(stats.logp * batch.advantage * batch.mask).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    if probe:
        probe.close()
    torch.save([*[p.detach() for p in model.parameters()], model.seen], f"{out}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]), *sys.argv[2:])
