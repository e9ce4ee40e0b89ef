"""npusim.reports."""
