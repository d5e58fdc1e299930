"""Run by torchrun from test_trl_lifecycle.py: the same training without the probe and with it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from entropy_lab.adapters.trl import attach  # noqa: E402
from trl_runs import make_trainer  # noqa: E402

folder = Path(sys.argv[1])
torch.set_num_threads(1)
for name in ("a", "b"):
    trainer = make_trainer(
        folder / name, max_steps=10, loss_type="bnpo", per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    if name == "b":
        attach(trainer, folder / "run", strict=True)
    trainer.train()
    if trainer.accelerator.is_main_process:
        torch.save(trainer.model.state_dict(), folder / f"{name}.pt")
