"""Torch models, one file per family."""
