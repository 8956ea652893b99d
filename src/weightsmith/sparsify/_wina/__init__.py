"""Activation sparsity: which inputs of a layer a token may skip, and the kernels that do not read their columns."""
