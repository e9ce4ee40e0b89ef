"""npusim.scheduler."""
