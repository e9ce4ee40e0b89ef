"""Sweeps: many design points of hardware, network, tiling and precision, each computed once and kept in a store."""
