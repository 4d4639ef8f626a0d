"""Output of `labelloop models inspect --suggest`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from labelloop.service.errors import LabelloopError
from labelloop.service.media import load_image
from ml_backend.detection.preprocess import RgbImage
from ml_backend.inference.detector import load_detector
from ml_backend.layouts.layout_file import layout_file_of, write_layout
from ml_backend.predict.suggest import CLOSE, PLAUSIBLE, SHOWN, Candidate, suggest


def print_suggestions(
    model: Path | None, image: Path | None, *, out: Path | None, size: tuple[int, int] | None, rank: int
) -> None:
    """Print proposals of a layout file, draw the best ones, and write the chosen one.

    Args:
        model: The ONNX file.
        image: An image with objects that the model knows.
        out: File of the drawing; None: NAME-suggested.png in this folder.
        size: (height, width) of the input in pixels where the graph leaves it open.
        rank: Rank of the proposal to write, from 1; 0: write none.

    Raises:
        LabelloopError: Model or image is missing, nothing plausible was found, or there is a layout file already.
    """
    if model is None or image is None:
        raise LabelloopError(
            "--suggest needs a model and an image.",
            fix="Run `labelloop models inspect MODEL --suggest --image PHOTO` with a photo of objects it knows.",
            code="suggest_arguments",
            status=400,
        )
    model = model.expanduser()
    _say_if_known(model)
    pixels = load_image(image.expanduser()).pixels
    candidates = suggest(model, pixels, size=size)
    if not candidates:
        raise LabelloopError(
            f"No reading of the outputs of {model} gives plausible detections on {image}.",
            fix="Try a photo with few, large objects that the model knows, and --size HEIGHT WIDTH if the graph leaves "
            "the size open. Otherwise write the file yourself: docs/reference/layout-file.md.",
            code="suggest_nothing",
            status=422,
        )
    for number, candidate in enumerate(candidates, 1):
        parts = ", ".join(f"{name} {value:.2f}" for name, value in candidate.parts.items())
        print(f"{number}  {candidate.plausibility:.2f}  {candidate.describe()}")
        print(f"         {len(candidate.detections)} detections; {parts}")
    for line in _cautions(candidates):
        print(line)
    out = out or Path(f"{model.stem}-suggested.png")
    draw_candidates(pixels, candidates[:SHOWN]).save(out)
    print(f"Drawn: {out} (the best {min(SHOWN, len(candidates))})")
    if rank:
        _write(model, image, candidates, rank)
    else:
        print("To write one: add --write, and --choose N for another than the first.")


def _say_if_known(model: Path) -> None:
    try:
        detector = load_detector(model, allow_numbered=True)
    except LabelloopError as error:
        print(f"Not served without changes: {error.message}")
        return
    print(f"The layout {detector.layout} decodes this file already, because: {detector.why}.")


def _cautions(candidates: list[Candidate]) -> list[str]:
    best = candidates[0]
    lines = []
    if best.plausibility < PLAUSIBLE:
        lines.append("None is convincing: the photo may show nothing that the model knows, or the layout is another.")
    classes = best.file.classes
    if classes is not None and classes.output:
        lines.append(
            f"No image tells where class numbers start: {classes.output} is read from {classes.first}. If the model's "
            f"first class has the number {1 - classes.first}, write `first = {1 - classes.first}` into `[classes]`."
        )
    close = [candidate for candidate in candidates[1:] if best.plausibility - candidate.plausibility < CLOSE]
    if close:
        lines.append(
            f"{len(close) + 1} are as good as the first: compare their boxes in the drawing, or try another photo."
        )
    return lines


def _write(model: Path, image: Path, candidates: list[Candidate], rank: int) -> None:
    if not 1 <= rank <= len(candidates):
        raise LabelloopError(
            f"There is no proposal {rank}; there are {len(candidates)}.",
            fix="Pass --choose with a number of the list.",
            code="suggest_rank",
            status=400,
        )
    existing = layout_file_of(model)
    if existing is not None:
        raise LabelloopError(
            f"{existing} exists already.",
            fix="Remove or rename it first; its keys are in docs/reference/layout-file.md.",
            code="layout_file_exists",
            status=409,
        )
    chosen = candidates[rank - 1]
    target = model.with_name(f"{model.stem}.layout.toml")
    comment = (
        f"Proposed by `labelloop models inspect {model.name} --suggest` from {image.name}, plausibility "
        f"{chosen.plausibility:.2f}.\nCheck it: labelloop models inspect {model.name} --image PHOTO\n"
        "Keys: docs/reference/layout-file.md. Class names: [classes] names = [...], or a .names file."
    )
    target.write_text(write_layout(chosen.file, comment=comment), encoding="utf-8")
    print(f"Written: {target}")


def draw_candidates(image: RgbImage, candidates: Sequence[Candidate], *, side: int = 480) -> Image.Image:
    """Draw the candidates side by side, each with its rank and plausibility."""
    factor = side / max(image.shape[:2])
    width, height = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    photo = Image.fromarray(image).resize((width, height))
    font = ImageFont.load_default(13)
    columns = min(2, max(1, len(candidates)))
    rows = -(-len(candidates) // columns)
    sheet = Image.new("RGB", (columns * (width + 8), rows * (height + 44)), "white")
    for index, candidate in enumerate(candidates):
        tile = photo.copy()
        pen = ImageDraw.Draw(tile)
        strong = candidate.detections.scores >= 0.4 * candidate.detections.scores.max(initial=0)
        drawn = candidate.detections[strong]
        for box, score, number in zip(drawn.boxes * factor, drawn.scores, drawn.classes, strict=True):
            pen.rectangle([float(value) for value in box], outline="#e6194b", width=2)
            pen.text((float(box[0]) + 3, float(box[1]) + 1), f"{number} {score:.2f}", fill="#e6194b", font=font)
        left, top = index % columns * (width + 8), index // columns * (height + 44)
        sheet.paste(tile, (left, top + 36))
        first, _, second = candidate.describe().partition("; ")
        title = f"{index + 1}: {candidate.plausibility:.2f}  {first}\n{second}"
        ImageDraw.Draw(sheet).text((left + 2, top + 2), title, fill="black", font=font)
    return sheet
