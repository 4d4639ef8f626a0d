"""Preprocessing of Hugging Face models: `preprocessor_config.json`, which exports put next to `model.onnx`.

Keys: https://huggingface.co/docs/transformers/main_classes/image_processor. Only graphs with their input `pixel_values`
are shown images so; a folder may hold other models too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_backend.errors import ModelBroken
from ml_backend.layouts.layout_file import Input, input_problems

FILE = "preprocessor_config.json"

# Name of the image input of Hugging Face's exports.
IMAGE_INPUT = "pixel_values"

_MAX_BYTES = 1 << 20


def processor_of(model: Path) -> Path | None:
    """Path of the `preprocessor_config.json` of a model's folder; None without one."""
    path = model.with_name(FILE)
    return path if path.is_file() else None


def read_processor(path: Path, model: Path) -> Input:
    """Read how images are shown to a model.

    Args:
        path: The `preprocessor_config.json`.
        model: The model, for errors.

    Raises:
        ModelBroken: The file cannot be read, or asks for what is not supported.
    """
    try:
        return _checked(_input(_read(path)))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelBroken(
            path=model,
            reason=f"its {FILE} cannot be followed: {error}.",
            fix="Correct that file, or say how images are shown in `[input]` of a layout file "
            "(docs/reference/layout-file.md).",
        ) from None


def _read(path: Path) -> Mapping[str, Any]:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
    words: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(words, Mapping):
        raise TypeError("it is no JSON object")
    return words


def _checked(found: Input) -> Input:
    for key, problem in input_problems(found):
        raise ValueError(f"{key.removeprefix('input.')} {problem}")
    return found


def _input(words: Mapping[str, Any]) -> Input:
    scaled = words.get("do_rescale", True)
    factor = float(words.get("rescale_factor", 1 / 255)) if scaled else 1.0
    ranges = {1 / 255: "0..1", 1 / 127.5: "-1..1" if words.get("rescale_offset") else "0..2", 1.0: "0..255"}
    pixels = next((name for value, name in ranges.items() if abs(factor / value - 1) < 0.01), None)
    if pixels not in {"0..1", "-1..1", "0..255"}:
        raise ValueError(f"`rescale_factor` is {factor}, and 1/255, 1/127.5 with `rescale_offset`, and 1 are supported")
    has_mean = "image_mean" in words and "image_std" in words
    if words.get("do_normalize") and not has_mean:
        raise ValueError("`do_normalize` is true without `image_mean` and `image_std`")
    normalised = words.get("do_normalize", True) and has_mean
    size, crop = _sides(words.get("size")), _sides(words.get("crop_size"))
    cropped = bool(words.get("do_center_crop", False)) or "crop_pct" in words
    return Input(
        size=(crop or size) if cropped else size,
        color="BGR" if words.get("do_flip_channel_order") else "RGB",
        range=pixels,  # type: ignore[arg-type]
        mean=_three(words["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=_three(words["image_std"]) if normalised else (1.0, 1.0, 1.0),
        letterbox="crop" if cropped else "stretch",
    )


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width of a size: a side, both, or the shortest; None where it says none."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping):
        if "height" in value and "width" in value:
            return int(value["height"]), int(value["width"])
        if "shortest_edge" in value:
            return int(value["shortest_edge"]), int(value["shortest_edge"])
    return None


def _three(value: Any) -> tuple[float, float, float]:
    values = [float(one) for one in (value if isinstance(value, list) else [value])]
    if len(values) not in {1, 3}:
        raise ValueError(f"{value} is not one number, or three")
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue
