"""The moments that the trainer announces by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropy_lab.adapters.trl.attachment import Attachment


def make_callback(attachment: Attachment) -> Any:
    """A TrainerCallback that passes the trainer's events on; transformers is needed only here."""
    from transformers import TrainerCallback

    class ProbeCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            attachment.begin(known["optimizer"], state.global_step)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            attachment.step_begins()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            attachment.before_optimizer()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            attachment.step_ends()

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            attachment.saved()

    return ProbeCallback()
