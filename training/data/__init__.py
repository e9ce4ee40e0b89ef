"""What the networks are trained on: procedural worlds, and batches that are functions of (seed, step)."""
