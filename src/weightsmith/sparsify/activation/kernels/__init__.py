"""Matrix-vector products that read only the columns whose input is kept: numba on the CPU, Triton on CUDA."""
