"""The test matrix: projects with difficult shapes, labels and names, exported in every format, with images."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from exporters.dataset.pull import pull
from exporters.dataset.versions import read_version
from exporters.formats import FORMATS
from exporters.pipeline.export import export
from labelloop.service.media import Media
from labelloop.service.settings import Settings
from labelloop.service.store import open_store

WIDTH, HEIGHT = 640, 360
LABELS = ("car", "dog", "person")
ODD_LABELS = ("5", "ünï côdé", "a #c", "yes", "- null", "日本", '"quoted"')
JOINTS = ("nose", "left eye", "right eye")


def holed() -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[40:200, 60:300] = True
    pixels[100:140, 120:200] = False
    pixels[250:350, 500:640] = True
    return pixels


def cases(build: Any) -> dict[str, dict[str, list]]:
    """Case -> photo -> results of its annotation."""
    boxes = [
        build.box(10, 20, 30, 40, "car", id="b1"),
        build.box(0, 0, 100, 100, "dog", id="b2"),
        build.box(99, 99, 1, 1, "person", id="b3"),
        build.box(-10, 50, 30, 70, "car", id="b4"),  # over the edge
        build.box(60, 60, -20, -30, "dog", id="b5"),  # drawn to the left and upwards
    ]
    turned = [build.box(40, 30, 25, 20, "car", rotation=angle, id=f"t{angle}") for angle in (15, 90, 200, 345)]
    polygons = [
        build.polygon([[10, 10], [40, 15], [35, 60], [12, 50]], "car", id="p1"),
        build.polygon([[50, 50], [90, 90], [90, 50], [50, 90]], "dog", id="p2"),  # crosses itself
        build.polygon([[80, -20], [130, 30], [70, 40]], "person", id="p3"),  # over the edge
    ]
    masks = [
        build.brush(holed(), id="m1"),
        build.ellipse(50, 50, 20, 30, 30, id="m2"),
    ]
    people = [
        build.box(10, 10, 30, 80, "person", id="one"),
        build.keypoint(20, 20, "nose", id="k1", parentID="one"),
        build.keypoint(22, 18, "left eye", id="k2", parentID="one"),
        build.box(60, 10, 30, 80, "person", id="two"),
        build.keypoint(70, 20, "nose", id="k3", parentID="two"),
    ]
    odd = [build.box(5 + 12 * n, 10, 10, 50, label, id=f"o{n}") for n, label in enumerate(ODD_LABELS)]
    drawn = (*boxes[:2], polygons[0], turned[0], masks[1])
    twins = [shape | {"id": f"{shape['id']}-{n}"} for shape in drawn for n in (1, 2)]
    attributes = {"colour": "red", "n": [1, 2], "on": True}
    notes = {"text": ["truncated, occluded, pose: Left", "ask"], "attributes": attributes}
    noted = [mask | {"meta": notes} for mask in (*boxes[:2], *polygons, masks[1])]
    several = [build.box(10, 20, 30, 40, "car", "dog", id="s1")]
    return {
        "boxes": {"a.jpg": boxes, "b.jpg": boxes[:1], "empty.jpg": []},
        "turned": {"a.jpg": turned, "b.jpg": turned[:2]},
        "polygons": {"a.jpg": polygons, "b.jpg": polygons[:1]},
        "masks": {"a.jpg": masks, "b.jpg": masks[1:]},
        "people": {"a.jpg": people, "b.jpg": people[:1]},
        "mixed": {"a.jpg": [*boxes, *turned, *polygons, *masks, *people], "b.jpg": masks, "empty.jpg": []},
        "names": {"x/1.jpg": boxes[:1], "y/1.jpg": boxes[1:2], "日本 x.jpg": odd, f"{'長' * 60}.jpg": boxes[:1]},
        "twins": {"a.jpg": twins, "b.jpg": twins[:2]},
        "noted": {"a.jpg": noted, "b.jpg": [*noted[:1], *boxes[1:2]]},
        "several": {"a.jpg": several, "b.jpg": [*several, *boxes[1:3]]},
    }


def config(labels: tuple[str, ...]) -> str:
    """A label config with every control."""
    listed = "".join(f"<Label value={_quoted(label)}/>" for label in labels)
    points = "".join(f"<Label value={_quoted(joint)}/>" for joint in JOINTS)
    tags = ("RectangleLabels", "PolygonLabels", "BrushLabels", "EllipseLabels")
    controls = "".join(f'<{tag} name="{tag.lower()}" toName="image">{listed}</{tag}>' for tag in tags)
    return (
        f'<View><Image name="image" value="$image"/>{controls}'
        f'<KeyPointLabels name="keypointlabels" toName="image">{points}</KeyPointLabels></View>'
    )


def make(case: dict[str, list], build: Any, root: Path, *, labels: tuple[str, ...]) -> dict[str, Path]:
    """Exports a case in every format and pulls it with its photos: format -> folder."""
    tasks = []
    for number, (name, results) in enumerate(case.items(), start=1):
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 150)).save(path)
        named = [result | {"from_name": result["type"]} for result in results]
        tasks.append(build.task(number, build.annotation(*named), image=f"/data/local-files/?d={name}"))
    (root / "tasks.json").write_bytes(msgspec.json.encode(tasks))
    settings = Settings(home=root / "home", label_studio_api_key="", local_files_root=root / "photos")
    formats = tuple(name for name in FORMATS if name != "yolo-classify")  # of whole images: test_classify.py
    to = f"file://{root / 'set'}"
    report = export(
        root / "tasks.json", settings=settings, to=to, formats=formats, label_config=config(labels), split="train=1"
    )
    assert report.published, report.accounts
    assert report.accounts.balanced
    store, media = open_store(to, settings), Media(settings, None)
    pulled = pull(store, read_version(store), to=root / "out", media=media)
    media.close()
    assert pulled.missing == ()
    return pulled.folders


def _quoted(text: str) -> str:
    from xml.sax.saxutils import quoteattr

    return quoteattr(text)
