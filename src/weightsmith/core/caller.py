"""What belongs to the caller: PyTorch's global settings, and the global random number generators."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

__all__ = ["callers_settings", "random_state_kept", "usual_settings"]

USUAL = (torch.device("cpu"), torch.float32)
_callers = threading.local()


@contextmanager
def usual_settings() -> Iterator[None]:
    """Have PyTorch's settings as they are by default inside the block, and the caller's after it.

    Autocast and inference mode are off, new tensors are of type float32 and on the CPU where nothing else is said: a
    method computes in the types and on the device of the weights, or asks for others itself. What is the caller's runs
    in :func:`callers_settings`. The default type is one for all threads.

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
        own = (torch.get_default_device(), torch.get_default_dtype())
        if own != USUAL:
            _keep(stack, own)
            _set_defaults(stack, *USUAL)
        yield


@contextmanager
def callers_settings() -> Iterator[None]:
    """Have the caller's default type and device again inside :func:`usual_settings`: for its model and its data set.

    They may make tensors of their own, and have been written for these settings.

    Examples
    --------
    >>> with torch.device("meta"), usual_settings(), callers_settings():
    ...     made = torch.ones(1)
    >>> made.device
    device(type='meta')
    """
    own = getattr(_callers, "settings", None)
    if own is None:
        yield
        return
    with ExitStack() as stack:
        _keep(stack, None)
        _set_defaults(stack, *own)
        yield


def _keep(stack: ExitStack, own: tuple[torch.device, torch.dtype] | None) -> None:
    """Keep the caller's settings; None where they are in force."""
    stack.callback(setattr, _callers, "settings", getattr(_callers, "settings", None))
    _callers.settings = own


def _set_defaults(stack: ExitStack, device: torch.device, dtype: torch.dtype) -> None:
    stack.enter_context(device)
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(dtype)


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
