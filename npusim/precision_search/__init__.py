"""Tiles and precision searched together: costs from the simulator, errors from real weights, choices by integer programming."""
