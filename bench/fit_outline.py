"""Train `ml_backend/models/outline.onnx`, the network of smart tools and of masks in boxes.

    python -m bench.fit_outline --mirrors FOLDER [--minutes 45] [--out OUT.onnx]

Needs PyTorch, which labelloop itself never does: `pip install torch`. FOLDER has git mirrors of the repositories that
`bench/sources.toml` names for this recipe (`bench.coco_masks`). The backbone starts as the embedded detector's and is
trained further with the decoder, on one core; images of the COCO sample are never trained on, so that `python -m bench
smart` judges on unseen ones. An interrupted run goes on from `OUT.onnx.checkpoint`.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.coco_masks import PERSONS, MaskedImage, mirrors_folder, read_masks, sources
from bench.drawn_masks import SOURCE as DRAWN
from bench.drawn_masks import draw_masks
from bench.smart import SAMPLE
from labelloop.labeling.geometry.shapes import Rectangle
from ml_backend.checksums import write_checksum
from ml_backend.inference.detector import embedded_model
from ml_backend.segmentation.crop import CONTEXT, BoxCrop
from ml_backend.segmentation.outline_network import NETWORK_SIDE, embedded_outline
from ml_backend.segmentation.prompt_maps import GRID, PROMPT_MAPS, prompt_maps

# Output of the backbone's first convolution: the prompt is added there.
STEM = "/n/bb/_conv_stem/Conv_output_0"

# Outputs of the backbone that the decoder reads, at strides 2, 4, 8 and 16, and their channels.
TAPS = {
    "/n/bb/_blocks.0/_project_conv/Conv_output_0": 16,
    "/n/bb/_blocks.2/Add_output_0": 24,
    "/n/bb/_blocks.4/Add_output_0": 40,
    "/n/bb/_blocks.10/Add_output_0": 112,
}

# Channels of the decoder at strides 16, 8, 4 and 2.
CHANNELS = (80, 64, 40, 24)

BATCH = 32

# Highest learning rates of backbone and decoder; they follow half a cosine of the time given.
BACKBONE_RATE, DECODER_RATE = 4e-4, 3e-3
WARM_UP_STEPS = 150

# Share of examples prompted by a box; the others by clicks.
BOX_SHARE = 0.47

# Objects below this many pixels are not trained on.
MIN_AREA = 30

# Drawn images that are added to the photos.
DRAWN_IMAGES = 500

# How often an object of a source is chosen, against 1 for others.
WEIGHTS = {PERSONS: 0.45, DRAWN: 0.2}

# Steps between checkpoints.
CHECKPOINT_STEPS = 100

PROVENANCE = (
    "Backbone: the beginning of labelloop's embedded detector (EfficientNet-Lite0), trained further. Masks: {objects} "
    "objects of {images} images of COCO 2017 (annotations CC BY 4.0; photos of Flickr under their own licences), "
    "found in public repositories: {repositories}; and drawn images."
)
LICENSE = "as the embedded detector's: provisional"


@dataclass(frozen=True, eq=False)
class MaskedObject:
    """An object to train on.

    Attributes:
        image: The image.
        polygons: Its outline, pixels.
        bounds: x_min, y_min, x_max, y_max.
        area: Pixels.
        centre: (x, y) of the point farthest from its edge: where one would click.
        inside: (12, 2) points deep inside it.
    """

    image: MaskedImage
    polygons: tuple[np.ndarray, ...]
    bounds: tuple[float, float, float, float]
    area: int
    centre: tuple[float, float]
    inside: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt for an object: inputs of the network, and the truth.

    Attributes:
        crop: (3, NETWORK_SIDE, NETWORK_SIDE) float32.
        prompt: (PROMPT_MAPS, GRID, GRID) float32.
        mask: (GRID, GRID) float32, the object's share of each pixel.
        area: Of the whole object, in pixels of `mask`: some of it may lie outside.
    """

    crop: np.ndarray
    prompt: np.ndarray
    mask: np.ndarray
    area: float


def masked_objects(images: list[MaskedImage]) -> list[MaskedObject]:
    """Every object that is large enough to train on."""
    numbers, found = np.random.default_rng(0), []
    for image in images:
        height, width = image.pixels.shape[:2]
        for polygons in image.objects:
            mask = np.zeros((height, width), np.uint8)
            _fill(mask, polygons, 1)
            points = np.concatenate(polygons)
            left, top = np.maximum(points.min(0), 0).tolist()
            right, bottom = np.minimum(points.max(0), [width, height]).tolist()
            area = int(mask.sum())
            if area < MIN_AREA or min(right - left, bottom - top) < 3:
                continue
            depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            rows, columns = np.nonzero(depth > 0.35 * depth.max())
            drawn = numbers.integers(0, len(rows), 12)
            inside = np.stack([columns[drawn] + 0.5, rows[drawn] + 0.5], 1).astype(np.float32)
            centre = (float(column) + 0.5, float(row) + 0.5)
            found.append(MaskedObject(image, polygons, (left, top, right, bottom), area, centre, inside))
    return found


def draw_example(target: MaskedObject, chance: random.Random) -> Example:
    """Draw a prompt for an object, and the light in which it is seen."""
    pixels = target.image.pixels
    height, width = pixels.shape[:2]
    has_box = chance.random() < BOX_SHARE
    positives: list[tuple[float, float]] = []
    if has_box:
        bounds = _loose_bounds(target, chance) if chance.random() < 0.6 else _jittered_bounds(target, chance)
        if chance.random() < 0.15:
            positives.append(_point_inside(target, chance))
    else:
        positives.append(target.centre if chance.random() < 0.4 else _point_inside(target, chance))
        if chance.random() < 0.12:
            positives.append(_point_inside(target, chance))
        bounds = _frame(target, positives, chance)
    left, top, right, bottom = bounds
    crop = BoxCrop(Rectangle(left, top, right - left, bottom - top), width, height)
    mask = _mask_in(crop, target.polygons)
    negatives = _points_outside(crop, mask, chance) if chance.random() < (0.15 if has_box else 0.12) else []
    shown = crop.render(pixels, NETWORK_SIDE)
    prompt = prompt_maps(crop, positives, negatives, has_box=has_box)
    matrix = crop.to_image_matrix()
    pixel_area = abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]) / GRID**2
    tall, wide = target.bounds[3] - target.bounds[1], target.bounds[2] - target.bounds[0]
    seen = _relit(shown, chance, coarse=min(tall, wide) > 40 and chance.random() < 0.15)
    if chance.random() < 0.5:
        seen, prompt, mask = seen[:, ::-1], prompt[..., ::-1], mask[:, ::-1]
    if chance.random() < 0.08:
        seen, prompt, mask = seen[::-1], prompt[:, ::-1], mask[::-1]
    area = max(target.area / pixel_area, float(mask.sum()))
    return Example(seen.transpose(2, 0, 1), prompt, mask, area)


def _loose_bounds(target: MaskedObject, chance: random.Random) -> tuple[float, float, float, float]:
    """As people draw: enlarged by up to 30 %, shared at random between the sides."""
    height, width = target.image.pixels.shape[:2]
    left, top, right, bottom = target.bounds
    across, down = chance.uniform(0, 0.3) * (right - left), chance.uniform(0, 0.3) * (bottom - top)
    x, y = chance.random(), chance.random()
    return (
        max(0, left - across * x), max(0, top - down * y),
        min(width, right + across * (1 - x)), min(height, bottom + down * (1 - y)),
    )  # fmt: skip


def _jittered_bounds(target: MaskedObject, chance: random.Random) -> tuple[float, float, float, float]:
    """As detectors predict: each side displaced by 6 % (standard deviation)."""
    height, width = target.image.pixels.shape[:2]
    left, top, right, bottom = target.bounds
    wide, tall = right - left, bottom - top
    x_min, y_min = max(0.0, left + chance.gauss(0, 0.06) * wide), max(0.0, top + chance.gauss(0, 0.06) * tall)
    x_max, y_max = right + chance.gauss(0, 0.06) * wide, bottom + chance.gauss(0, 0.06) * tall
    return x_min, y_min, min(width, max(x_max, x_min + 3)), min(height, max(y_max, y_min + 3))


def _frame(
    target: MaskedObject, positives: list[tuple[float, float]], chance: random.Random
) -> tuple[float, float, float, float]:
    """A square around clicks: half by the object's size, half by the image's, as the segmenter tries them."""
    left, top, right, bottom = target.bounds
    if chance.random() < 0.5:
        side = max(right - left, bottom - top) * 2 ** chance.uniform(-1.3, 2.3)
    else:
        side = max(target.image.pixels.shape[:2]) * 2 ** chance.uniform(-4.3, 0.3)
    half = max(side / CONTEXT, 8.0) / 2
    x, y = np.mean([point[0] for point in positives]), np.mean([point[1] for point in positives])
    return float(x - half), float(y - half), float(x + half), float(y + half)


def _point_inside(target: MaskedObject, chance: random.Random) -> tuple[float, float]:
    x, y = target.inside[chance.randrange(len(target.inside))].tolist()
    return x, y


def _points_outside(crop: BoxCrop, mask: np.ndarray, chance: random.Random) -> list[tuple[float, float]]:
    rows, columns = np.nonzero(mask < 0.05)
    if not len(rows):
        return []
    drawn = chance.randrange(len(rows))
    x, y = (crop.to_image_matrix() @ [(columns[drawn] + 0.5) / GRID, (rows[drawn] + 0.5) / GRID, 1.0])[:2].tolist()
    return [(x, y)]


def _mask_in(crop: BoxCrop, polygons: tuple[np.ndarray, ...]) -> np.ndarray:
    """The object's share of each pixel of the crop: (GRID, GRID) float32."""
    side = 2 * GRID
    mask = np.zeros((side, side), np.uint8)
    inverse = np.linalg.inv(crop.to_image_matrix())
    mapped = tuple(
        np.clip((np.column_stack([polygon, np.ones(len(polygon))]) @ inverse.T)[:, :2] * side, -4 * side, 5 * side)
        for polygon in polygons
    )
    _fill(mask, mapped, 255)
    return cv2.resize(mask, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _fill(mask: np.ndarray, polygons: tuple[np.ndarray, ...], value: int) -> None:
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(polygon * 16 - 8).astype(np.int32)], value, cv2.LINE_8, 4)


def _relit(shown: np.ndarray, chance: random.Random, *, coarse: bool) -> np.ndarray:
    """The crop in another light; `coarse`: with as few pixels as a small object has."""
    if coarse:
        side = chance.randint(20, 80)
        small = cv2.resize(shown, (side, side), interpolation=cv2.INTER_AREA)
        shown = cv2.resize(small, (NETWORK_SIDE, NETWORK_SIDE), interpolation=cv2.INTER_LINEAR)
    seen = shown.astype(np.float32)
    if chance.random() < 0.8:
        tint = np.array([chance.uniform(-12, 12) for _ in range(3)], np.float32)
        seen = (seen - 128) * chance.uniform(0.7, 1.3) + 128 + chance.uniform(-25, 25) + tint
        grey = seen.mean(2, keepdims=True)
        seen = grey + (seen - grey) * (0 if chance.random() < 0.06 else chance.uniform(0.5, 1.4))
    if chance.random() < 0.1:
        noise = np.random.default_rng(chance.randrange(2**32)).standard_normal(seen.shape, dtype=np.float32)
        seen = seen + noise * chance.uniform(2, 12)
    return seen.clip(0, 255)


def backbone_graph() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Nodes of the embedded detector up to the last tap, without casts, and its constants in single precision."""
    graph = onnx.load(embedded_model()).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
        elif node.op_type in {"Sub", "Div", "Conv", "Clip", "Add"}:
            nodes.append(node)
        if node.output[0] == list(TAPS)[-1]:
            break
    return nodes, values


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {item.name: list(item.ints) if item.ints else item.i for item in node.attribute}


def _key(name: str) -> str:
    """Name of a weight as PyTorch accepts it."""
    return name.replace("::", "_").replace("/", "_").replace(".", "_")


def network():
    """The network in PyTorch: `forward(view, prompt)` gives logits, logits of the predicted IoU, and features."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Backbone(nn.Module):
        """The detector's convolutions, whose batch norms are folded already."""

        def __init__(self) -> None:
            super().__init__()
            self.nodes, values = backbone_graph()
            self.w = nn.ParameterDict()
            for node in self.nodes:
                if node.op_type == "Conv":
                    for suffix, name in zip("wb", node.input[1:], strict=True):
                        value = torch.from_numpy(values[name].astype(np.float32).copy())
                        self.w[_key(node.input[1]) + suffix] = nn.Parameter(value)
                elif node.op_type in {"Sub", "Div"}:
                    value = torch.from_numpy(values[node.input[1]].astype(np.float32).copy())
                    self.register_buffer("mean" if node.op_type == "Sub" else "std", value)

        def forward(self, view, prompted):
            values = {}
            for node in self.nodes:
                name, inputs = node.output[0], [values.get(item) for item in node.input]
                if node.op_type == "Sub":
                    values[name] = view - self.mean
                elif node.op_type == "Div":
                    values[name] = inputs[0] / self.std
                elif node.op_type == "Clip":
                    values[name] = inputs[0].clamp(0, 6)
                elif node.op_type == "Add":
                    values[name] = inputs[0] + inputs[1]
                else:
                    more, key = _attributes(node), _key(node.input[1])
                    top, left, bottom, right = more["pads"]
                    padded, pads = inputs[0], (top, left)
                    if (top, left) != (bottom, right):
                        padded, pads = functional.pad(padded, (left, right, top, bottom)), (0, 0)
                    weights = self.w[key + "w"], self.w[key + "b"]
                    values[name] = functional.conv2d(padded, *weights, more["strides"], pads, groups=more["group"])
                    if name == STEM:
                        values[name] = values[name] + prompted
            return [values[tap] for tap in TAPS]

    def block(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    class Separable(nn.Module):
        """A residual block: depthwise 5x5, then pointwise."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
            self.dw = nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU())
            self.pw = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

        def forward(self, inputs):
            return functional.relu(inputs + self.pw(self.dw(inputs)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sixteenth, eighth, quarter, half = CHANNELS
            self.bb = Backbone()
            self.prompt = nn.Conv2d(PROMPT_MAPS, 32, 3, padding=1)
            nn.init.zeros_(self.prompt.weight)
            nn.init.zeros_(self.prompt.bias)
            self.l3, self.ctx = block(112, sixteenth), nn.Linear(112, sixteenth)
            self.m3 = nn.Sequential(Separable(sixteenth), Separable(sixteenth))
            self.d2 = nn.Conv2d(sixteenth, eighth, 1, bias=False)
            self.l2 = nn.Conv2d(40, eighth, 1, bias=False)
            self.n2 = nn.BatchNorm2d(eighth)
            self.m2 = nn.Sequential(Separable(eighth), Separable(eighth))
            self.d1 = nn.Conv2d(eighth, quarter, 1, bias=False)
            self.l1 = nn.Conv2d(24 + PROMPT_MAPS, quarter, 1, bias=False)
            self.n1, self.m1 = nn.BatchNorm2d(quarter), block(quarter, quarter, 3)
            self.d0 = nn.Conv2d(quarter, half, 1, bias=False)
            self.l0 = nn.Conv2d(16 + PROMPT_MAPS, half, 1, bias=False)
            self.n0, self.m0 = nn.BatchNorm2d(half), block(half, half, 3)
            self.out = nn.Conv2d(half, 1, 1)
            nn.init.constant_(self.out.bias, -1.0)
            self.q1, self.q2 = nn.Linear(112 + eighth + half, 48), nn.Linear(48, 1)

        def forward(self, view, prompt):
            def merged(coarse, fine, norm):
                grown = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
                return functional.relu(norm(grown + fine))

            t1, t2, t3, t4 = self.bb(view, self.prompt(prompt))
            context = t4.mean((2, 3))
            y3 = self.m3(self.l3(t4) + self.ctx(context)[:, :, None, None])
            y2 = self.m2(merged(self.d2(y3), self.l2(t3), self.n2))
            y1 = merged(self.d1(y2), self.l1(torch.cat([t2, functional.avg_pool2d(prompt, 2)], 1)), self.n1)
            y1 = y1 + self.m1(y1)
            y0 = merged(self.d0(y1), self.l0(torch.cat([t1, prompt], 1)), self.n0)
            features = y0 + self.m0(y0)
            logits = self.out(features)
            share = torch.sigmoid(logits)
            pooled = (features * share).mean((2, 3)) / (share.mean((2, 3)) + 1e-3)
            hidden = functional.relu(self.q1(torch.cat([context, y2.mean((2, 3)), pooled], 1)))
            return logits[:, 0], self.q2(hidden)[:, 0], features

    return Network()


def fit(objects: list[MaskedObject], *, minutes: float, checkpoint: Path) -> dict[str, np.ndarray]:
    """Weights by name, averaged over the last steps.

    Args:
        objects: To train on.
        minutes: Time to take, on one core.
        checkpoint: Written as the training goes on; where it exists, the training continues from it.
    """
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    chance = random.Random(0)
    weights = [WEIGHTS.get(item.image.source, 1.0) for item in objects]
    net = network().to(memory_format=torch.channels_last)
    parts = [
        [value for name, value in net.named_parameters() if name.startswith("bb.") is kind] for kind in (True, False)
    ]
    rates = BACKBONE_RATE, DECODER_RATE
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    average, step, start = copy.deepcopy(net), 0, time.monotonic()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(saved["net"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, start = saved["step"], time.monotonic() - saved["elapsed"]
        chance.seed(step)
    net.train()
    losses: list[float] = []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        pace = min(1.0, step / WARM_UP_STEPS) * (0.49 * (1 + math.cos(math.pi * progress)) + 0.02)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * pace
        examples = [draw_example(item, chance) for item in chance.choices(objects, weights, k=BATCH)]
        view, prompt, mask = (
            torch.from_numpy(np.ascontiguousarray(np.stack([getattr(item, name) for item in examples])))
            for name in ("crop", "prompt", "mask")
        )
        area = torch.tensor([item.area for item in examples])
        logits, quality, _ = net(view.contiguous(memory_format=torch.channels_last), prompt)
        probability = torch.sigmoid(logits)
        shared = (probability * mask).sum((1, 2))
        soft_iou = (shared + 1) / ((probability + mask).sum((1, 2)) - shared + 1)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, mask)
        with torch.no_grad():
            found = (logits > 0).float()
            shared = (found * mask).sum((1, 2))
            iou = (shared / (found.sum((1, 2)) + area - shared).clamp(min=1e-3)).clamp(0, 1)
        loss = cross_entropy + 0.7 * (1 - soft_iou).mean()
        loss = loss + 0.4 * functional.binary_cross_entropy_with_logits(quality, iou)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimizer.step()
        step += 1
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                if slow.dtype.is_floating_point:
                    slow.lerp_(fast, 1 - decay)
                else:
                    slow.copy_(fast)
        losses.append(loss.item())
        if step % CHECKPOINT_STEPS == 0:
            print(f"step {step}, {progress:.0%} of the time: loss {np.mean(losses):.3f}", flush=True)
            losses.clear()
            saved = {"net": net.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**saved, "step": step, "elapsed": time.monotonic() - start}, checkpoint)
    return {name: value.detach().numpy() for name, value in average.state_dict().items()}


class GraphWriter:
    """Writes the network as ONNX: batch norms folded, weights in half precision, cast when loaded."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        """Write nothing yet.

        Args:
            state: Weights by name, as `fit` returns them.
        """
        self.state = state
        self.graph = onnx.GraphProto(name="outline")
        self.constant("twice", np.array([1, 1, 2, 2], np.float32))

    def constant(self, name: str, value: np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **more: object) -> str:
        self.graph.node.append(helper.make_node(kind, inputs, [name], name=name, **more))
        return name

    def half(self, name: str, value: np.ndarray) -> str:
        self.constant(f"{name}_h", value.astype(np.float16))
        return self.node("Cast", [f"{name}_h"], name, to=TensorProto.FLOAT)

    def conv(self, source: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None, **more: object) -> str:
        """A convolution that keeps the size, unless `more` says otherwise."""
        weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        inputs = [source, self.half(f"{name}.weight", weight)]
        inputs += [] if bias is None else [self.half(f"{name}.bias", bias)]
        return self.node("Conv", inputs, name, **{"pads": [weight.shape[2] // 2] * 4, **more})

    def conv_norm(self, source: str, name: str, conv: str, norm: str, **more: object) -> str:
        scale, shift = self.folded(norm)
        return self.conv(source, name, self.state[f"{conv}.weight"] * scale[:, None, None, None], shift, **more)

    def folded(self, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """Scale and shift of a batch norm."""
        scale = self.state[f"{norm}.weight"] / np.sqrt(self.state[f"{norm}.running_var"] + 1e-5)
        return scale, self.state[f"{norm}.bias"] - scale * self.state[f"{norm}.running_mean"]

    def relu(self, source: str) -> str:
        return self.node("Relu", [source], f"{source}/relu")

    def separable(self, source: str, name: str) -> str:
        groups = len(self.state[f"{name}.dw.0.weight"])
        inner = self.relu(self.conv_norm(source, f"{name}.dw", f"{name}.dw.0", f"{name}.dw.1", group=groups))
        outer = self.conv_norm(inner, f"{name}.pw", f"{name}.pw.0", f"{name}.pw.1")
        return self.relu(self.node("Add", [source, outer], f"{name}.sum"))

    def merged(self, coarse: str, fine: str, level: int) -> str:
        """The coarser level at twice its size, added to the finer one."""
        scale, shift = self.folded(f"n{level}")
        scale = scale[:, None, None, None]
        inner = self.conv(coarse, f"d{level}", self.state[f"d{level}.weight"] * scale, shift)
        more = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        grown = self.node("Resize", [inner, "", "twice"], f"d{level}/grown", **more)
        outer = self.conv(fine, f"l{level}", self.state[f"l{level}.weight"] * scale)
        return self.relu(self.node("Add", [grown, outer], f"n{level}"))

    def backbone(self, prompted: str) -> list[str]:
        """Names of the taps."""
        names = {"images": "view"}
        limits = [self.constant("zero", np.float32(0)), self.constant("six", np.float32(6))]
        for node in backbone_graph()[0]:
            inputs = [names.get(item, item) for item in node.input]
            name = "backbone" + node.output[0].replace("/n/bb", "")
            names[node.output[0]] = name
            if node.op_type == "Conv":
                key = _key(node.input[1])
                weights = self.state[f"bb.w.{key}w"], self.state[f"bb.w.{key}b"]
                more = {item: _attributes(node)[item] for item in ("group", "strides", "pads")}
                self.conv(inputs[0], name, *weights, **more)
                if node.output[0] == STEM:
                    names[STEM] = self.node("Add", [name, prompted], "prompted")
            elif node.op_type in {"Sub", "Div"}:
                constant = "mean" if node.op_type == "Sub" else "std"
                self.node(node.op_type, [inputs[0], self.constant(constant, self.state[f"bb.{constant}"])], name)
            else:
                self.node(node.op_type, [inputs[0], *limits] if node.op_type == "Clip" else inputs, name)
        return [names[tap] for tap in TAPS]


def assemble(state: dict[str, np.ndarray], metadata: dict[str, str]) -> onnx.ModelProto:
    """The network as one graph: view, prompt -> odds, quality, features; `out` is its last convolution."""
    writer = GraphWriter(state)
    t1, t2, t3, t4 = writer.backbone(writer.conv("prompt", "prompt_in", state["prompt.weight"], state["prompt.bias"]))
    context = writer.node("GlobalAveragePool", [t4], "context")
    added = writer.conv(context, "ctx", state["ctx.weight"], state["ctx.bias"])
    y3 = writer.node("Add", [writer.relu(writer.conv_norm(t4, "l3", "l3.0", "l3.1")), added], "y3")
    y3 = writer.separable(writer.separable(y3, "m3.0"), "m3.1")
    y2 = writer.merged(y3, t3, 2)
    y2 = writer.separable(writer.separable(y2, "m2.0"), "m2.1")
    halved = writer.node("AveragePool", ["prompt"], "prompt_half", kernel_shape=[2, 2], strides=[2, 2])
    y1 = writer.merged(y2, writer.node("Concat", [t2, halved], "t2_prompt", axis=1), 1)
    y1 = writer.node("Add", [y1, writer.relu(writer.conv_norm(y1, "m1", "m1.0", "m1.1"))], "y1")
    y0 = writer.merged(y1, writer.node("Concat", [t1, "prompt"], "t1_prompt", axis=1), 0)
    features = writer.node("Add", [y0, writer.relu(writer.conv_norm(y0, "m0", "m0.0", "m0.1"))], "features")
    logits = writer.conv(features, "out", state["out.weight"], state["out.bias"])
    writer.node("Squeeze", [logits, writer.constant("channel", np.array([1]))], "odds")
    share = writer.node("Sigmoid", [logits], "share")
    inside = writer.node("GlobalAveragePool", [writer.node("Mul", [features, share], "inside")], "inside_mean")
    area = writer.node("GlobalAveragePool", [share], "share_mean")
    area = writer.node("Add", [area, writer.constant("least_area", np.float32(1e-3))], "area")
    pooled = writer.node("Div", [inside, area], "inside_features")
    level = writer.node("GlobalAveragePool", [y2], "y2_mean")
    known = writer.node("Concat", [context, level, pooled], "quality_features", axis=1)
    hidden = writer.relu(writer.conv(known, "q1", state["q1.weight"], state["q1.bias"]))
    quality = writer.node("Sigmoid", [writer.conv(hidden, "q2", state["q2.weight"], state["q2.bias"])], "quality_map")
    writer.node("Reshape", [quality, writer.constant("flat", np.array([-1]))], "quality")
    tensor = helper.make_tensor_value_info
    writer.graph.input.extend(
        [
            tensor("view", TensorProto.FLOAT, ["n", 3, NETWORK_SIDE, NETWORK_SIDE]),
            tensor("prompt", TensorProto.FLOAT, ["n", PROMPT_MAPS, GRID, GRID]),
        ]
    )
    writer.graph.output.extend(
        [
            tensor("odds", TensorProto.FLOAT, ["n", GRID, GRID]),
            tensor("quality", TensorProto.FLOAT, ["n"]),
            tensor("features", TensorProto.FLOAT, ["n", CHANNELS[-1], GRID, GRID]),
        ]
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(writer.graph, opset_imports=opset, ir_version=8, producer_name="labelloop")
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


def metadata(objects: list[MaskedObject]) -> dict[str, str]:
    """What the file says of its origin."""
    objects = [item for item in objects if item.image.source != DRAWN]
    images = {item.image.coco_id for item in objects}
    repositories = ", ".join(sorted({entry["repo"] for entry in sources()}))
    provenance = PROVENANCE.format(objects=len(objects), images=len(images), repositories=repositories)
    return {"provenance": provenance, "license": LICENSE}


def main(arguments: list[str] | None = None) -> None:
    """Read the masks, train, and write the file with its checksum."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit_outline", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--mirrors", type=Path, default=mirrors_folder(), help="git mirrors; default LABELLOOP_MIRRORS")
    parser.add_argument("--minutes", type=float, default=45, help="time to train, on one core (default 45)")
    parser.add_argument("--out", type=Path, default=embedded_outline(), help="the file to write")
    options = parser.parse_args(arguments)
    left_out = {int(path.stem) for path in (SAMPLE / "images").glob("*.jpg")}
    if not left_out:
        raise SystemExit(f"No COCO sample at {SAMPLE}: its images would be trained on.")
    objects = masked_objects(read_masks(options.mirrors, left_out) + draw_masks(DRAWN_IMAGES))
    print(f"{len(objects)} objects", flush=True)
    state = fit(objects, minutes=options.minutes, checkpoint=Path(f"{options.out}.checkpoint"))
    onnx.save(assemble(state, metadata(objects)), options.out)
    write_checksum(options.out)


if __name__ == "__main__":
    main()
