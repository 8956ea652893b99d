"""Online orthogonal dictionary learning: the estimator, its Frank-Wolfe step, dictionaries of activations."""
