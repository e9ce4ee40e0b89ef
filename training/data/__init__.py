"""What the networks are trained on: the procedural worlds, and latents drawn as a function of (seed, step)."""
