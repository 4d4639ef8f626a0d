"""Photos of simple shapes, drawn by chance, and what is on them: what a detector learns from a few of them."""

import numpy as np

SIDE = 320


def draw_shapes(seed, labels=("Disc", "Square")):
    """Red discs and blue squares on grey noise, side by side: the photo (SIDE, SIDE, 3), and (label, box) of each."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (SIDE, SIDE, 3)).astype(np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    drawn = []
    for place, label in enumerate(labels):
        radius, cx, cy = int(rng.integers(28, 45)), int(rng.integers(50, SIDE - 50)), 80 + 160 * place
        if label == "Disc":
            photo[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = (220, 20, 20)
        else:
            photo[cy - radius : cy + radius, cx - radius : cx + radius] = (20, 20, 220)
        drawn.append((label, (cx - radius, cy - radius, cx + radius, cy + radius)))
    return photo, drawn
