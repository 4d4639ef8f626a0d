"""Read one format that an export wrote, with a referee; prints one line. Runs in the referees' environment.

python bench/written_referee.py FORMAT FOLDER PANOPTICAPI
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path


def semantic_png(folder, _):
    import numpy as np
    from PIL import Image

    sheet = json.loads((folder / "classes.json").read_text())
    known = {entry["id"] for entry in sheet["classes"]} | {sheet["ignore_index"]}
    masks = sorted(folder.glob("masks/*/*.png"))
    found = set()
    for path in masks:
        pixels = np.asarray(Image.open(path))
        found |= set(np.unique(pixels).tolist())
        image = folder / "images" / path.parent.name / f"{path.stem}.jpg"
        if Image.open(image).size != (pixels.shape[1], pixels.shape[0]):
            raise SystemExit(f"{path} is of another size than its image")
    return f"Pillow: {len(masks)} masks, values {sorted(found)}, all in classes.json: {found <= known}"


def coco_panoptic(folder, panopticapi):
    sys.path.insert(0, str(panopticapi))
    import datumaro as dm
    from panopticapi.evaluation import pq_compute

    said = []
    for split in ("train", "val"):
        file = str(folder / f"annotations/panoptic_{split}.json")
        with contextlib.redirect_stdout(io.StringIO()):
            result = pq_compute(file, file, file[:-5], file[:-5])
        said.append(f"{result['All']['pq']:.3f}")
    data = dm.Dataset.import_from(str(folder), "coco_panoptic")
    segments = sum(len(item.annotations) for item in data)
    return f"panopticapi: PQ of the data set against itself {' and '.join(said)}; datumaro: {segments} segments"


def dota(folder, _):
    import datumaro as dm

    data = dm.Dataset.import_from(str(folder), "dota")
    return f"datumaro: {len(data)} images, {sum(len(item.annotations) for item in data)} rotated boxes"


def imagefolder(folder, _):
    os.environ |= {"HF_HOME": str(folder.parent / ".hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset("imagefolder", data_dir=str(folder))
    objects = sum(len(row["bbox"]) for split in data.values() for row in split["objects"])
    sizes = {name: len(split) for name, split in data.items()}
    first = data["train"][0]
    return f"datasets: {sizes}, {objects} boxes, image {first['image'].size}, text {first['text']!r}"


READERS = {"semantic-png": semantic_png, "coco-panoptic": coco_panoptic, "dota": dota, "imagefolder": imagefolder}


if __name__ == "__main__":
    print(READERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3])))
