"""The column kernels: compiled with numba for the CPU and with Triton for CUDA."""

from __future__ import annotations

import torch

__all__ = ["BITS"]

BITS = {torch.float32: torch.float32, torch.float16: torch.uint16, torch.bfloat16: torch.int16}
"""Types of weights, and as what numpy sees them: it has no bfloat16."""
