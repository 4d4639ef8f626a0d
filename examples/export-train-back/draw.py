"""Draw labelled images, as an annotator would have left them: python draw.py FOLDER."""

import json
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, COUNT = 320, 40
COLOURS = {"Disc": (200, 60, 50), "Square": (60, 90, 200)}


def region(label: str, box: tuple[int, int, int, int], number: int) -> dict:
    """A rectangle in Label Studio's JSON: per cent of the image."""
    x0, y0, x1, y1 = (100 * value / SIDE for value in box)
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": [label]}
    names = {"id": f"region{number}", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**names, "original_width": SIDE, "original_height": SIDE, "value": value}


def draw(folder: Path) -> list[dict]:
    """Tasks with one annotation each; their images lie in the folder."""
    chance, tasks = random.Random(7), []  # noqa: S311 - drawn the same each time
    for number in range(1, COUNT + 1):
        grey = chance.randrange(90, 200)
        image, regions = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey)), []
        pen = ImageDraw.Draw(image)
        for cell in chance.sample(range(9), chance.randrange(1, 4)):
            label, side = chance.choice(list(COLOURS)), chance.randrange(40, 90)
            x, y = 105 * (cell % 3) + chance.randrange(15), 105 * (cell // 3) + chance.randrange(15)
            shape = pen.ellipse if label == "Disc" else pen.rectangle
            shape((x, y, x + side - 1, y + side - 1), fill=COLOURS[label])
            regions.append(region(label, (x, y, x + side, y + side), len(regions)))
        file = folder / f"{number:03}.png"
        image.save(file)
        annotation = {"id": number, "completed_by": 1, "result": regions}
        tasks.append(
            {"id": number, "data": {"image": f"/data/local-files/?d={file.name}"}, "annotations": [annotation]}
        )
    return tasks


if __name__ == "__main__":
    images = Path(sys.argv[1]) / "images"
    images.mkdir(parents=True, exist_ok=True)
    (images.parent / "export.json").write_text(json.dumps(draw(images)))
