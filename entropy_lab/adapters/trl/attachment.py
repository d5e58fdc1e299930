"""From attach to the end of training: when the probe is made, what a step is told, what is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from entropy_lab.adapters.trl.carrier import Carrier
from entropy_lab.adapters.trl.settings import run_config, run_facts
from entropy_lab.adapters.trl.watch import Watch
from entropy_lab.errors import RunError
from entropy_lab.probe import Probe
from entropy_lab.record import open_run, rewind
from entropy_lab.record.manifest import set_status, update_info

logger = logging.getLogger("entropy_lab.trl")

# What the trainer logs under these names stands beside ours in metrics.jsonl.
TRL_METRICS = {
    "entropy": "trl_entropy",
    "reward": "trl_reward",
    "clip_ratio/low_mean": "trl_clip_low",
    "clip_ratio/high_mean": "trl_clip_high",
    "clip_ratio/region_mean": "trl_clip_region",
    "cispo_clip_ratio": "trl_clip_high",
    "kl": "trl_kl",
}
# Ours, shown by whatever tracker the trainer reports to.
MIRRORED = ("dH_train", "dH_heldout", "alarm")


class Attachment:
    """A probe on a trainer. `probe` is there from the first step on; `close` takes all of it off,
    which the end of `trainer.train()` does as well."""

    def __init__(
        self,
        trainer: Any,
        run_dir: str | Path,
        carrier: Carrier | None,
        held_out: bool,
        options: dict[str, Any],
    ) -> None:
        self.trainer, self.run_dir, self.carrier = trainer, Path(run_dir), carrier
        self.options = options
        self.watch = Watch(trainer, carrier, held_out, options["seed"])
        self.probe: Probe | None = None
        self.callback: Any = None  # removed from the trainer at the end
        self._lengths: dict[str, int] = {}
        self._taken = 0
        self._closed = False
        own = trainer.train
        self._train_is_its_own = "train" in vars(trainer)
        trainer.train = lambda *args, **kwargs: self._train(own, *args, **kwargs)
        self._own_train = own
        trainer._entropy_lab = self

    def _train(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """trainer.train(), after which the log has an end whatever happened."""
        try:
            result = own(*args, **kwargs)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            try:
                self.close("interrupted" if interrupted else "failed")
            except RunError as later:
                error.add_note(str(later))
            raise
        self.close()
        return result

    def begin(self, optimizer: Any, step: int) -> None:
        """Training begins: the optimizer exists now, and whether it goes on from a checkpoint."""
        if self._closed:
            return
        trainer = self.trainer
        main = trainer.accelerator.is_main_process
        if step and main:
            rewind(self.run_dir, step - 1)
            set_status(self.run_dir, "running")
        if step:
            trainer.accelerator.wait_for_everyone()
            known = open_run(self.run_dir).samples(["rollout"])["rollout"]
            self.watch.next_rollout = int(known.max()) + 1 if len(known) else 0
        method = self.carrier.method if self.carrier else None
        wrapper = trainer.model_wrapped
        self.probe = Probe(
            wrapper if isinstance(wrapper, DistributedDataParallel) else trainer.model,
            optimizer,
            self.run_dir,
            self.watch.score,
            temperature=trainer.temperature,
            config=run_config(trainer, method, self.options["seed"]),
            start_step=step or None,
            write_samples=False,
            **self.options,
        )
        if main:
            update_info(self.run_dir, **run_facts(trainer, self.carrier))
        self.probe.loss_scale = self._loss_scale
        self.watch.probe = self.probe

    def _loss_scale(self) -> float:
        """What fp16 multiplies the loss with."""
        scaler = self.trainer.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def step_begins(self) -> None:
        """Micro-batches that no step took (an overflow in fp16) are not those of the next one."""
        if self.probe is None:
            return
        self.probe.discard("the trainer moved no weight on these micro-batches")
        self.watch.response_means()
        self.watch.window_begins = True
        self._lengths = {k: len(v) for k, v in self.trainer._metrics["train"].items()}
        self._taken = self.probe.step

    def before_optimizer(self) -> None:
        """Gradients are final: what the probe cannot know itself."""
        probe, watch = self.probe, self.watch
        if probe is None:
            return
        number = watch.rollout.number if watch.rollout else -1
        if self.carrier is not None:
            self.carrier.verify(probe.window.records)
        probe.note(rollout=number, **watch.step_facts, **self._method_scalars())
        watch.step_facts = {}
        watch.safely("held_out", watch.hold_out_next)

    def _method_scalars(self) -> dict[str, float]:
        return self.carrier.scalars() if self.carrier else {}

    def step_ends(self) -> None:
        """The step's line in metrics.jsonl, TRL's own numbers beside ours."""
        probe, watch = self.probe, self.watch
        if probe is None or probe.step == self._taken:
            return
        if self.carrier is not None:
            self.carrier.end_step()
        line = probe.commit(**watch.response_means(), **self._trl_metrics())
        for name in MIRRORED:
            value = line.get(name)
            if isinstance(value, float | bool) and value == value:
                self.trainer._metrics["train"][f"entropy_lab/{name}"].append(float(value))

    def _trl_metrics(self) -> dict[str, float]:
        """Means of what the trainer appended to its own metrics during this step."""
        found = {}
        for theirs, ours in TRL_METRICS.items():
            values = self.trainer._metrics["train"].get(theirs, [])
            new = [v for v in values[self._lengths.get(theirs, 0) :] if v == v]
            if new:
                found[ours] = sum(new) / len(new)
        return found

    def saved(self) -> None:
        """The trainer wrote a checkpoint: the log can be cut back to here."""
        if self.probe is not None:
            self.watch.safely("flush", self.probe.flush)

    def close(self, status: str = "finished") -> None:
        """Write what is left and give the trainer its own methods back; once."""
        if self._closed:
            return
        self._closed = True
        self.watch.stop()
        if self.carrier is not None:
            self.carrier.restore()
        if self._train_is_its_own:
            self.trainer.train = self._own_train
        else:
            vars(self.trainer).pop("train", None)
        del self.trainer._entropy_lab
        if self.callback is not None:
            self.trainer.remove_callback(self.callback)
        if self.probe is not None:
            self.probe.close(status)
