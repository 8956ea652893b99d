"""Doctests of the Triton kernels need Triton, which only Linux has."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/weightsmith/sparsify/_wina/kernels/cuda.py"]
