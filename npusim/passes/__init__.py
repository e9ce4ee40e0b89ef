"""Part of npusim."""
