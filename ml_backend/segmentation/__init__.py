"""Segmentation from prompts: turn an image with a box or clicks into an object's mask."""
