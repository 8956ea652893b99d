"""Every test and doctest runs offline, on one thread, and draws the same numbers whatever ran before it."""

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it once, when it is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Doctests of the Triton kernels need Triton, which only Linux has.
collect_ignore = [] if find_spec("triton") else ["src/weightsmith/sparsify/_wina/kernels/cuda.py"]


@pytest.fixture(scope="session")
def cluster():
    """Ray with two processors of this machine, started once for all tests of a process."""
    ray = pytest.importorskip("ray", reason="Ray is an extra that is not installed: pip install 'weightsmith[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def _seed():
    """Seed the global generators, with a seed that no test gives to one of its own."""
    import numpy as np
    import torch

    torch.manual_seed(6174)
    np.random.seed(6174)  # noqa: NPY002
