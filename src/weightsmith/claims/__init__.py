"""One file per paper: the experiment that shows its headline claim against its baselines and controls."""
