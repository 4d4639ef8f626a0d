"""Run by datumaro's own Python: reads data sets, lines of `case format folder` on stdin, and says what it found."""

import json
import sys
import warnings

import datumaro
from datumaro.components.annotation import AnnotationType


def read(kind: str, folder: str) -> dict:
    """Image -> boxes of its objects: (label, x, y, width, height); and the errors of its validator."""
    data = datumaro.Dataset.import_from(folder, kind)
    names = [each.name for each in data.categories()[AnnotationType.label]]
    images = {
        item.id: [
            (names[each.label], *map(float, each.get_bbox()))
            for each in item.annotations
            if each.type in {AnnotationType.bbox, AnnotationType.polygon, AnnotationType.mask}
        ]
        for item in data
    }
    # what a photo of the data set is: it has one, and it can be decoded
    photos = sum(item.media is not None and item.media.data is not None for item in data)
    return {"images": images, "photos": photos, "labels": names}


def main() -> None:
    for line in sys.stdin:
        case, kind, folder = line.rstrip("\n").split("\t")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = read(kind, folder)
            except Exception as error:  # noqa: BLE001 - whatever it complains of is the finding
                found = {"error": f"{type(error).__name__}: {error}"}
        found["warnings"] = [str(each.message) for each in said if folder in str(each.message)]
        print(json.dumps({"case": case, "kind": kind} | found), flush=True)


if __name__ == "__main__":
    main()
