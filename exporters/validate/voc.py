"""What can be wrong in a Pascal VOC folder.

Format: the VOC2012 development kit: whole pixels from 1, the maximum included.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse

from exporters.names import EXTENSIONS
from exporters.validate.flaws import Problems
from exporters.validate.names import check_classes, check_shared
from exporters.validate.photos import check_photo

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def check_voc(folder: Path, name: str, problems: Problems) -> None:
    """Look a folder with ``Annotations/`` through; images are compared where ``JPEGImages/`` is there."""
    stems: set[str] = set()
    classes: set[str] = set()
    beside: dict[str, list[Path]] = defaultdict(list)
    if (folder / "JPEGImages").is_dir():
        for path in sorted((folder / "JPEGImages").iterdir()):
            if path.suffix.lower() in EXTENSIONS:
                beside[path.stem].append(path)
    for path in sorted((folder / "Annotations").glob("*.xml")):
        problems.looked_at["VOC files"] += 1
        stems.add(path.stem)
        file = f"{name}Annotations/{path.name}"
        try:
            root: Any = parse(path).getroot()
        except (ParseError, DefusedXmlException, OSError, ValueError) as error:
            problems.add("voc-unreadable", file, detail=str(error))
            continue
        size = _page(root, file, problems)
        classes |= {label for each in root.iter("object") if (label := each.findtext("name") or "").strip()}
        if path.stem in beside:
            check_photo(beside[path.stem][0], file, "", size, problems)
        elif (folder / "JPEGImages").is_dir():
            problems.add("voc-image-missing", file, detail=root.findtext("filename") or path.stem)
    check_classes(sorted(classes), f"{name}Annotations", "name", problems)
    check_shared(beside, {stem: f"{name}Annotations/{stem}.xml" for stem in sorted(stems)}, problems)
    _lists(folder, name, stems, problems)


def _page(root: Element, file: str, problems: Problems) -> tuple[float, float] | None:
    """Look a file's text through; gives the size that it states."""
    width, height = (_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if not width or not height or width <= 0 or height <= 0:
        problems.add("voc-size", file, detail=f"width {width}, height {height}")
        width = height = None
    for place, each in enumerate(root.iter("object"), start=1):
        problems.looked_at["objects"] += 1
        where = f"object {place}"
        if not (each.findtext("name") or "").strip():
            problems.add("voc-box", file, where, "it has no name")
        box = [_number(each.findtext(f"bndbox/{edge}")) for edge in _EDGES]
        x_min, y_min, x_max, y_max = box
        if x_min is None or y_min is None or x_max is None or y_max is None or x_max < x_min or y_max < y_min:
            problems.add("voc-box", file, where, f"xmin, ymin, xmax, ymax are {box}")
        elif x_min < 1 or y_min < 1 or (width and x_max > width) or (height and y_max > height):
            on = f" on {width:g} x {height:g}" if width and height else ""
            problems.add(
                "voc-box-outside", file, where, f"{[f'{edge:g}' for edge in (x_min, y_min, x_max, y_max)]}{on}"
            )
    return (width, height) if width and height else None


def _lists(folder: Path, name: str, stems: set[str], problems: Problems) -> None:
    main = folder / "ImageSets" / "Main"
    listed: dict[str, set[str]] = {}
    for split in ("train", "val", "trainval", "test"):
        path = main / f"{split}.txt"
        if path.is_file():
            # the kit's lists of one class have a second column
            listed[split] = {line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    if not listed:
        problems.add("voc-imagesets", f"{name}ImageSets/Main", detail="no train.txt, val.txt, trainval.txt or test.txt")
        return
    for split, names in listed.items():
        for stem in sorted(names - stems):
            problems.add("voc-imagesets", f"{name}ImageSets/Main/{split}.txt", stem, "it has no file in Annotations")
    for stem in sorted(stems - set().union(*listed.values())):
        problems.add("voc-imagesets", f"{name}Annotations/{stem}.xml", detail="no list has it")
    for stem in sorted(listed.get("train", set()) & (listed.get("val", set()) | listed.get("test", set()))):
        problems.add("voc-imagesets", f"{name}ImageSets/Main/train.txt", stem, "it is in val.txt or test.txt too")


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if abs(number) < 1e9 else None
