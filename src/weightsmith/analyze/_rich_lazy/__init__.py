"""Rich or lazy: how far training moved the features of each layer, and the rank of the initial weights that sets it."""
