"""Run by datumaro's own Python: reads data sets, lines of `case format folder` on stdin, and says what it found."""

import json
import sys
import warnings

import datumaro
from datumaro.components.annotation import AnnotationType


def read(kind: str, folder: str) -> dict:
    """Image -> boxes of its objects: (label, x, y, width, height); and the errors of its validator."""
    data = datumaro.Dataset.import_from(folder, kind)
    names = [category.name for category in data.categories()[AnnotationType.label]]
    images = {
        item.id: [
            (names[annotation.label], *map(float, annotation.get_bbox()))
            for annotation in item.annotations
            if annotation.type in {AnnotationType.bbox, AnnotationType.polygon, AnnotationType.mask}
        ]
        for item in data
    }
    # what a photo of the data set is: it has one, and it can be decoded
    photos = sum(item.media is not None and item.media.data is not None for item in data)
    return {"images": images, "photos": photos, "labels": names}


def main() -> None:
    for line in sys.stdin:
        case, kind, folder = line.rstrip("\n").split("\t")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                answer = read(kind, folder)
            except Exception as error:  # noqa: BLE001 - whatever it complains of is the finding
                answer = {"error": f"{type(error).__name__}: {error}"}
        answer["warnings"] = [str(item.message) for item in caught if folder in str(item.message)]
        print(json.dumps({"case": case, "kind": kind} | answer), flush=True)


if __name__ == "__main__":
    main()
