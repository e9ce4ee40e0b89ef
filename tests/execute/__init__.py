"""Tests of the reference executor; helpers are imported relatively, hence a package."""
