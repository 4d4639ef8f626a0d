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


def draw_animal(seed):
    """A green body between a red head and a blue tail on grey noise, never upright.

    The photo (SIDE, SIDE, 3), head and tail, and centre, width, height and degrees of the box along the body.
    """
    import cv2

    rng = np.random.default_rng(seed)
    photo = rng.integers(100, 156, (SIDE, SIDE, 3)).astype(np.uint8)
    centre, degrees = rng.uniform(110, SIDE - 110, 2), float(rng.uniform(15, 75) + 90 * (seed % 2))
    along = np.array([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]) * 70
    head, tail = centre + along, centre - along
    ends = [tuple(int(value) for value in point) for point in (head, tail)]
    cv2.line(photo, *ends, (40, 160, 40), 34)
    cv2.circle(photo, ends[0], 16, (220, 20, 20), -1)
    cv2.circle(photo, ends[1], 12, (20, 20, 220), -1)
    return photo, head.tolist(), tail.tolist(), (*centre.tolist(), 172.0, 36.0, degrees)


def animal_json(seed, *, rotated, points=True):
    """The animal as an annotator draws it on stock Label Studio: its box, rotated or upright, and its points."""
    _, head, tail, (cx, cy, wide, high, degrees) = draw_animal(seed)
    size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0, "to_name": "image"}
    percent = 100 / SIDE
    cos, sin = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    if not rotated:
        wide, high = wide * abs(cos) + high * abs(sin), wide * abs(sin) + high * abs(cos)
        degrees, cos, sin = 0.0, 1.0, 0.0
    x, y = cx - cos * wide / 2 + sin * high / 2, cy - sin * wide / 2 - cos * high / 2
    value = {
        "x": x * percent, "y": y * percent, "width": wide * percent, "height": high * percent, "rotation": degrees,
        "rectanglelabels": ["Animal"],
    }  # fmt: skip
    results = [{"id": f"b{seed}", "from_name": "label", "type": "rectanglelabels", "value": value, **size}]
    for label, (x, y) in (("head", head), ("tail", tail)) if points else ():
        value = {"x": x * percent, "y": y * percent, "width": 0.5, "keypointlabels": [label]}
        result = {"id": f"{label}{seed}", "from_name": "point", "type": "keypointlabels", "value": value, **size}
        results.append({**result, "parentID": f"b{seed}"})
    return results
