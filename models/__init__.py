"""npusim.models."""
