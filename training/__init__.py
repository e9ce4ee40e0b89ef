"""npusim.training."""
