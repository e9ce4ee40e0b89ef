"""Distances and scores of sets of pictures, and intervals for differences between models."""
