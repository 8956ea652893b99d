"""Remove input channels of layers, and re-solve the weights that remain (ModHiFi)."""
