"""What a loss has learned, in the checkpoints of ``transformers.Trainer``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io import write_file

__all__ = ["LossCheckpoint"]


@runtime_checkable
class Stateful(Protocol):
    """A loss with a state."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Take it over."""
        ...


class LossCheckpoint(TrainerCallback):
    """Put the state of a loss into the Trainer's checkpoints, and take it over when a run is resumed.

    The Trainer saves the model, the optimizer and the schedule. Without this callback a resumed run starts with a
    rescaler that has learned nothing, or without the losses of a window.

    Parameters
    ----------
    loss : LossReweighter, MetaRescaler or any object with ``state_dict`` and ``load_state_dict``
        Of the run that is saved or resumed.
    name : str, default: "loss.pt"
        Of the file in each checkpoint's folder.

    Raises
    ------
    CheckpointError
        When a run is resumed from a checkpoint of the Trainer's ``output_dir`` that has no such file.

    Examples
    --------
    >>> from weightsmith.train import LossReweighter
    >>> reweighter = LossReweighter(window=64)
    >>> callback = LossCheckpoint(reweighter)  # Trainer(..., compute_loss_func=reweighter.compute_loss_func,
    >>> callback.name                          #         callbacks=[callback])
    'loss.pt'
    """

    def __init__(self, loss: Stateful, name: str = "loss.pt") -> None:
        self.loss, self.name = loss, name

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state beside the checkpoint's files."""
        if state.is_world_process_zero:
            buffer = io.BytesIO()
            torch.save(dict(self.loss.state_dict()), buffer)
            write_file(self._path(args, state), buffer.getvalue())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the state of a run that is resumed."""
        if not state.global_step:
            return
        path = self._path(args, state)
        try:
            held = torch.load(path, weights_only=True)
        except (OSError, UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"the state of the loss in {path}",
                found=f"{type(error).__name__}",
                do="Resume a run that was saved with this callback, or leave the callback out to start the loss anew.",
            ) from error
        self.loss.load_state_dict(held)

    def _path(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / self.name
