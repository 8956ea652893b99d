"""What belongs to the caller: PyTorch's global settings, and the global random number generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

__all__ = ["random_state_kept", "usual_settings"]


@contextmanager
def usual_settings() -> Iterator[None]:
    """Have PyTorch's settings as they are by default inside the block, and the caller's after it.

    Autocast and inference mode are off, new tensors are of type float32 and on the CPU where nothing else is said: a
    method computes in the types and on the device of the weights, or asks for others itself.

    Examples
    --------
    >>> with torch.inference_mode(), torch.device("meta"), usual_settings():
    ...     made = torch.ones(1)
    >>> made, made.is_inference()
    (tensor([1.]), False)
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (own := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, own)
            torch.set_default_dtype(torch.float32)
        yield


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Have the caller draw the random numbers afterwards that it would have drawn before.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> with random_state_kept():
    ...     inside = torch.rand(1)
    >>> bool(torch.rand(1) == inside)
    True
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what runs inside may draw from it
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
