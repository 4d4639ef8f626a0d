"""`/predict` against raw ONNX Runtime: overhead, throughput and memory; and what the models find (AP50)."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np

from labelloop.service.media import load_image
from labelloop.service.settings import Settings
from ml_backend.detection.class_names import read_sidecar
from ml_backend.detection.preprocess import prepare
from ml_backend.inference.detector import embedded_model, load_detector
from ml_backend.server.app import create_app

SHARED = Path(__file__).parents[2] / "shared"
SAMPLE = SHARED / "data" / "coco_sample"
ROUNDS = 60
TASKS = 100
TURNS = 5


class Files:
    """Photos straight from files: the network is no part of what is measured."""

    def photo(self, url, *, task_id=None, max_side=None, **_):
        del task_id
        return load_image(Path(url), max_side=max_side)


class Decoded(Files):
    """The same, decoded once and kept."""

    def __init__(self) -> None:
        self._kept: dict = {}

    def photo(self, url, *, task_id=None, max_side=None, **_):
        if (url, max_side) not in self._kept:
            self._kept[url, max_side] = super().photo(url, task_id=task_id, max_side=max_side)
        return self._kept[url, max_side]


class Watch:
    """A function that adds up the time spent in it: (wall, processor of its thread), seconds."""

    def __init__(self, function):
        self.function, self.spent = function, np.zeros(2)

    def __call__(self, *args, **options):
        before = now()
        try:
            return self.function(*args, **options)
        finally:
            self.spent += now() - before

    def method(self):
        """The same as a function: an object would not be given the instance that it is called on."""

        def call(*args, **options):
            return self(*args, **options)

        return call


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.thread_time()])


def run() -> str:
    """The figures, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        photos, which = _photos(Path(folder))
        models = [embedded_model(), *(file for file in [SHARED / "models" / "yolox_nano.onnx"] if file.is_file())]
        load = os.getloadavg()[0]
        throughputs = [_throughput(model, photos, Path(folder)) for model in models]
        parts = [
            f"Photos: {which}. Load average when it began: {load:.1f} on {os.cpu_count()} cores.",
            "",
            "## One photo, one request",
            "",
            f"{ROUNDS} rounds, each raw ONNX Runtime (same options and array), then /predict. Milliseconds, p50 / p95.",
            "Overhead = a /predict less its time in ONNX Runtime and in decoding and resizing: all the rest is ours.",
            "Once by the clock on the wall, once in processor time (which other programs on the machine disturb less).",
            "",
            "| model | raw run | /predict | in ONNX Runtime | in decode, resize | overhead | overhead, CPU |",
            "|---|---|---|---|---|---|---|",
            *(_overhead(model, photos, Path(folder)) for model in models),
            "",
            *_throughput_lines(throughputs),
            "## Memory of one worker",
            "",
            "A fresh process: the app, its model, 100 photos predicted.",
            "",
            "| model | resident MB | peak MB |",
            "|---|---|---|",
            *(_memory(model, photos) for model in models),
            "",
            _accuracy(models),
        ]
    return "\n".join(parts)


def throughput() -> str:
    """The throughput alone, in less than two minutes."""
    with tempfile.TemporaryDirectory() as folder:
        photos, _ = _photos(Path(folder))
        models = [embedded_model(), *(file for file in [SHARED / "models" / "yolox_nano.onnx"] if file.is_file())]
        lines = _throughput_lines([_throughput(model, photos, Path(folder)) for model in models])
    return "\n".join([*lines, f"Load average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores."])


def _throughput_lines(throughputs: list[tuple[str, str]]) -> list[str]:
    return [
        f"## {TASKS} photos in one request",
        "",
        "Raw: the session alone on whole prepared inputs: in a loop, and by two threads. /predict: all of it, from",
        "the JPEG files; then with photos that were decoded before, so that both look at the same decoded image.",
        f"Seconds by the clock on the wall, the best of {TURNS} turns that all take part in, and shares of both raw",
        "figures; then processor ms a photo. Two raw threads leave no core idle: beside them, /predict can reach at",
        "most the share of the processor's time that the network takes of it (the last column).",
        "",
        "| model | raw, loop s | raw, two at once s | /predict s | of the loop | of two | decoded before s | of two |",
        "|---|---|---|---|---|---|---|---|",
        *(wall for wall, _ in throughputs),
        "",
        "| model | raw ms | /predict ms | decoded before ms | raw of /predict |",
        "|---|---|---|---|---|",
        *(spent for _, spent in throughputs),
        "",
    ]


def _photos(folder: Path) -> tuple[list[Path], str]:
    if SAMPLE.is_dir():
        files = sorted((SAMPLE / "images").glob("*.jpg"))
        return files, f"{len(files)} photos of COCO, about 640 x 480, JPEG"
    from PIL import Image
    from skimage import data

    files = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        files.append(folder / f"{name}.jpg")
        Image.fromarray(getattr(data, name)()).save(files[-1], quality=92)
    return files, "4 photos of scikit-image (COCO's are not on this machine)"


def _app(model: Path, folder: Path, *, photos=None):
    settings = Settings(home=folder / "home", model=model, log_level="ERROR")
    client = create_app(settings, photos=photos or Files()).test_client()
    while client.get("/ready").status_code != 200:
        time.sleep(0.05)
    return client


def _body(model: Path, photos: list[Path]) -> dict:
    labels = "".join(f'<Label value="{name}"/>' for name in load_detector(model).names.names)
    config = f"""<View><Image name="image" value="$image"/>
    <RectangleLabels name="label" toName="image">{labels}</RectangleLabels></View>"""
    return {
        "tasks": [{"id": n, "data": {"image": str(photo)}} for n, photo in enumerate(photos)],
        "label_config": config,
        "project": "1.1",
    }


def _raw(model: Path):
    """ONNX Runtime alone, with the threads of the backend (its default, threads that spin, suffers on busy cores)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _prepared(photo: Path, spec, *, detector=None):
    """The whole input; with a detector, the part of it that it runs."""
    loaded = load_image(photo, max_side=max(spec.width, spec.height))
    size = loaded.width, loaded.height
    return prepare(loaded.pixels, detector.spec_for(*size) if detector else spec, size=size)


def _overhead(model: Path, photos: list[Path], folder: Path) -> str:
    import onnxruntime

    detector, client, session = load_detector(model), _app(model, folder), _raw(model)
    name, outputs = session.get_inputs()[0].name, [one.name for one in session.get_outputs()]
    body = _body(model, photos)
    runtime = Watch(onnxruntime.InferenceSession.run)
    decode, resize = Watch(Files.photo), Watch(prepare)
    clocks = []
    with (
        mock.patch.object(onnxruntime.InferenceSession, "run", runtime.method()),
        mock.patch.object(Files, "photo", decode.method()),
        mock.patch("ml_backend.predict.predictor.prepare", resize),
    ):
        for turn in range(ROUNDS + 5):
            tensor = _prepared(photos[turn % len(photos)], detector.spec).tensor[None]
            before = now()
            session.run(outputs, {name: tensor})
            raw = now() - before
            for watch in (runtime, decode, resize):
                watch.spent = np.zeros(2)
            before = now()
            answer = client.post("/predict", json={**body, "tasks": [body["tasks"][turn % len(photos)]]})
            whole = now() - before
            assert answer.status_code == 200
            prepared = decode.spent + resize.spent
            clocks.append([raw, whole, runtime.spent.copy(), prepared, whole - runtime.spent - prepared])
    kept = np.array(clocks[5:]) * 1000  # (rounds, 5, wall or processor)
    columns = [*kept[:, :, 0].T, kept[:, 4, 1]]
    cells = [f"{np.percentile(column, 50):.1f} / {np.percentile(column, 95):.1f}" for column in columns]
    return f"| {model.name} | {' | '.join(cells)} |"


def _throughput(model: Path, photos: list[Path], folder: Path) -> tuple[str, str]:
    detector, session = load_detector(model), _raw(model)
    name, outputs = session.get_inputs()[0].name, [one.name for one in session.get_outputs()]
    chosen = [photos[n % len(photos)] for n in range(TASKS)]
    tensors = [_prepared(photo, detector.spec).tensor[None] for photo in chosen]
    body, whole, decoded = _body(model, chosen), _app(model, folder), _app(model, folder, photos=Decoded())

    def raw(tensor) -> None:
        session.run(outputs, {name: tensor})

    def two_at_once() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(raw, tensors))

    ways = {
        "one by one": lambda: [raw(tensor) for tensor in tensors],
        "two at once": two_at_once,
        "whole": lambda: whole.post("/predict", json=body),
        "decoded": lambda: decoded.post("/predict", json=body),
    }
    assert len(decoded.post("/predict", json=body).json["results"]) == TASKS
    clocks: dict[str, list] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, go in ways.items():
            before = clock()
            go()
            clocks[way].append(np.subtract(clock(), before))
    best = {way: np.min(each, axis=0) for way, each in clocks.items()}
    wall = {way: each[0] for way, each in best.items()}
    loop_s, raw_s = wall["one by one"], min(wall["one by one"], wall["two at once"])
    spent = {way: 1000 * each[1] / TASKS for way, each in best.items()}
    raw_ms = min(spent["one by one"], spent["two at once"])
    seconds = [
        loop_s, raw_s, wall["whole"], loop_s / wall["whole"], raw_s / wall["whole"], wall["decoded"],
        raw_s / wall["decoded"],
    ]  # fmt: skip
    each = [f"{one:.1f}" for one in (raw_ms, spent["whole"], spent["decoded"])]
    return (
        f"| {model.name} | {' | '.join(f'{one:.2f}' for one in seconds)} |",
        f"| {model.name} | {' | '.join(each)} | {raw_ms / spent['whole']:.2f} |",
    )


def clock() -> tuple[float, float]:
    """(on the wall, of the processor, all threads), seconds."""
    return time.perf_counter(), time.process_time()


def _memory(model: Path, photos: list[Path]) -> str:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path; from bench.predict import _app, _body
client = _app(Path({str(model)!r}), Path(sys.argv[1]))
photos = [Path(p) for p in {[str(p) for p in photos]!r}]
body = _body(Path({str(model)!r}), (photos * 100)[:100])
assert client.post('/predict', json=body).status_code == 200
status = dict(line.split(':', 1) for line in open('/proc/self/status') if line.startswith('Vm'))
print(int(status['VmRSS'].split()[0]) // 1024, int(status['VmHWM'].split()[0]) // 1024, 'torch' in sys.modules)
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    resident, peak, torch = done.stdout.split()[-3:]
    assert torch == "False"
    return f"| {model.name} | {resident} | {peak} |"


def _accuracy(models: list[Path]) -> str:
    if not SAMPLE.is_dir():
        return "AP50 was not measured: the COCO sample is not on this machine."
    names = list(read_sidecar(SHARED / "models" / "coco80.txt"))
    photos = sorted((SAMPLE / "images").glob("*.jpg"))
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            detector = load_detector(model, cache_folder=Path(folder))  # as the backend opens it
        classes = [names.index(name) for name in detector.names.names]  # both use VOC's words for what they share
        served, whole, plain, area = [], [], [], []
        for number, photo in enumerate(photos):
            ready = _prepared(photo, detector.spec)
            cut = _prepared(photo, detector.spec, detector=detector)
            area.append(cut.tensor.size / ready.tensor.size)
            for found, one in ((served, cut), (whole, ready)):
                [seen] = detector.detect([one], floor=0.01)
                found.extend(_coco(number, seen.boxes, seen.scores, [classes[c] for c in seen.classes]))
            if detector.layout == "yolox":
                plain += _coco(number, *_plain_yolox(detector, ready))
        cells = [f"{_ap50(photos, found, classes):.3f}" if found else "-" for found in (served, whole, plain)]
        rows.append(f"| {model.name} | {len(classes)} | {np.mean(area):.2f} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "## What they find",
            "",
            f"AP50 by pycocotools on {len(photos)} photos of COCO, over the classes that the model has. Reference: the",
            "model's own decoding written out as a plain loop over cells and boxes, on the same input.",
            "",
            "Served: the input without most of its padding, see `docs/how-to/own-model.md`. On 494 photos of COCO",
            "(those of `bench/coco_masks.py`) it was .3687 served against .3686 on whole inputs with base.onnx, and",
            ".4249 against .4253 with yolox_nano.onnx.",
            "",
            "| model | classes | share of the input that is run | AP50 as served | AP50, whole | reference decoding |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _plain_yolox(detector, ready):
    """YOLOX by the book: every cell, every class, one box after the other."""
    [raw] = next(iter(detector.engine.run([ready.tensor]).values()))
    candidates = []
    cells = (
        (x, y, stride)
        for stride in (8, 16, 32)
        for y in range(detector.spec.height // stride)
        for x in range(detector.spec.width // stride)
    )
    for row, (x, y, stride) in zip(raw.tolist(), cells, strict=True):
        best = max(range(5, len(row)), key=row.__getitem__)
        score = row[4] * row[best]
        if score < 0.01:
            continue
        cx, cy, w, h = (row[0] + x) * stride, (row[1] + y) * stride, np.exp(row[2]) * stride, np.exp(row[3]) * stride
        candidates.append((score, best - 5, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    kept: list = []
    for one in sorted(candidates, reverse=True):
        if all(one[1] != other[1] or _iou(one[2], other[2]) <= 0.45 for other in kept):
            kept.append(one)
    fit = ready.fit
    boxes = [[b[0] / fit.scale_x, b[1] / fit.scale_y, b[2] / fit.scale_x, b[3] / fit.scale_y] for _, _, b in kept]
    return np.array(boxes).reshape(-1, 4), [score for score, _, _ in kept], [class_ for _, class_, _ in kept]


def _iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def _coco(image: int, boxes, scores, classes) -> list[dict]:
    return [
        {"image_id": image, "category_id": c, "score": float(s), "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
        for b, s, c in zip(np.asarray(boxes).tolist(), scores, classes, strict=True)
    ]


def _ap50(photos: list[Path], found: list[dict], classes: list[int]) -> float:
    return _stats(photos, found, classes)[1]


def _stats(photos: list[Path], found: list[dict], classes: list[int]) -> list[float]:
    """pycocotools' twelve figures: AP, AP50, AP75, AP of small, medium and large boxes, then recalls."""
    from PIL import Image
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, images = [], []
    for number, photo in enumerate(photos):
        width, height = Image.open(photo).size
        images.append({"id": number, "width": width, "height": height})
        labels = SAMPLE / "labels_detect" / f"{photo.stem}.txt"
        for line in labels.read_text().splitlines() if labels.is_file() else ():
            class_, cx, cy, w, h = (float(part) for part in line.split())
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": int(class_), "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0,
                }
            )  # fmt: skip
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in range(80)]}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.params.catIds = sorted(set(classes))
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(one) for one in judge.stats]


if __name__ == "__main__":
    print(throughput())
