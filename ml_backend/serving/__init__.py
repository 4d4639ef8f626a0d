"""The model registry, the active version, and hot swaps."""
