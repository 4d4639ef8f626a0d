"""What supervision, as a referee, finds in a data set."""

from pathlib import Path

import supervision


def boxes_of(data: supervision.DetectionDataset) -> dict[str, list[tuple]]:
    """File name -> (label, x_min, y_min, x_max, y_max) of each object, sorted."""
    return {
        Path(path).name: sorted(
            (data.classes[int(kind)], *box) for box, kind in zip(each.xyxy.tolist(), each.class_id, strict=True)
        )
        for path, _, each in data
    }
