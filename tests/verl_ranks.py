"""One rank of a data-parallel run of verl's engine.

python verl_ranks.py RANK WORLD PORT FOLDER NAME. With WORLD 1 the same responses are one minibatch
of a single rank; where NAME is "broken", rank 1 cannot read its rows in step 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import verl_cpu


def main(rank: int, world: int, port: str, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    verl_cpu.use_cpu()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    engine = verl_cpu.make_engine(folder / "model", external_lib="entropy_lab.adapters.verl")
    section = {"run_dir": str(folder / name), "strict": name != "broken"}
    loss = verl_cpu.loss_function(verl_cpu.actor_config(entropy_lab=section))
    if name == "broken" and rank == 1:
        plant()
    with engine.train_mode():
        for step in range(3):
            data = [verl_cpu.minibatch(seed=step, rank=r) for r in range(2)]
            mine = verl_cpu.joined(data) if world == 1 else data[rank]
            engine.train_batch(mine, loss)
    from entropy_lab.adapters.verl import recorder_of

    recorder_of(engine).close()
    state = {k: v.full_tensor() for k, v in engine.module.state_dict().items()}
    if rank == 0:
        save_file(state, folder / f"{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def plant() -> None:
    """An error of one rank alone, between its passes."""
    from entropy_lab.adapters.verl import recorder

    inner = recorder.token_batch

    def broken(*args, step: int, **kwargs):
        if step == 1:
            raise RuntimeError("planted")
        return inner(*args, step=step, **kwargs)

    recorder.token_batch = broken


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5])
