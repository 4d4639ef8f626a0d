"""Smart tools on generated images with known objects: answers to boxes and clicks."""

import io
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from labelloop.labeling.geometry.overlap import iou
from labelloop.labeling.geometry.shapes import Ellipse, Mask, Polygon, Rectangle
from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import ModelPrediction
from labelloop.service.errors import Busy
from labelloop.service.media import DecodedImage, MediaMissing, load_image
from labelloop.service.memory_budget import MemoryBudget
from ml_backend.segmentation.crop import BoxCrop
from ml_backend.segmentation.crop_mask import InstanceMask
from ml_backend.segmentation.outline_network import OutlineSegmenter
from ml_backend.smart import SmartTools, serves_smart_tools
from ml_backend.smart.embedding_cache import SingleFlightLRU
from tests.read_regions import read_regions

W, H = 400, 300
LABELS = '<Label value="Car"/><Label value="Bg"/>'
CONFIG = f"""<View><Image name="image" value="$image"/>
<KeyPointLabels name="kp" toName="image" smartOnly="true">{LABELS}</KeyPointLabels>
<RectangleLabels name="box" toName="image" smart="true">{LABELS}</RectangleLabels>{{}}</View>"""
BRUSH = f'<BrushLabels name="brush" toName="image" smart="false">{LABELS}</BrushLabels>'
POLYGON = f'<PolygonLabels name="poly" toName="image" smart="false">{LABELS}</PolygonLabels>'
ELLIPSE = f'<EllipseLabels name="oval" toName="image" smart="false">{LABELS}</EllipseLabels>'
BITMASK = f'<BitmaskLabels name="bits" toName="image" smart="false">{LABELS}</BitmaskLabels>'


def scene(cx=200, cy=140, rx=70, ry=45, seed=0):
    """An image of one disc on a noisy background, and the disc."""
    noise = np.random.default_rng(seed)
    disc = Ellipse(cx, cy, rx, ry)
    ground = np.array([60, 110, 70]) + noise.normal(0, 8, (H, W, 3)) + np.linspace(-20, 20, W)[None, :, None]
    image = np.where(disc.mask(W, H)[..., None], np.array([200, 60, 50]) + noise.normal(0, 12, (H, W, 3)), ground)
    return image.clip(0, 255).astype(np.uint8), disc


def box(x, y, width, height, label="Car", **more):
    value = {"x": x * 100 / W, "y": y * 100 / H, "width": width * 100 / W, "height": height * 100 / H, "rotation": 0}
    return {
        "id": "drawn", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "origin": "manual",
        "original_width": W, "original_height": H, "image_rotation": 0,
        "value": {**value, **more.pop("value", {}), "rectanglelabels": [label]}, **more,
    }  # fmt: skip


def click(x, y, label="Car", *, positive=True, **more):
    value = {"x": x * 100 / W, "y": y * 100 / H, "width": 0.26, "labels": [label], "keypointlabels": [label]}
    return {
        "id": "clicked", "from_name": "kp", "to_name": "image", "type": "keypointlabels", "is_positive": positive,
        "original_width": W, "original_height": H, "image_rotation": 0, "value": value, **more,
    }  # fmt: skip


def ask(tools, *prompts, outlets=BRUSH, url="disc.png", task=None):
    config = LabelConfig.parse(CONFIG.format(outlets))
    return tools.answer(task or {"id": 3, "data": {"image": url}}, config, {"result": list(prompts)}).result


def shape(result):
    [region] = read_regions(ModelPrediction(results=(Result(result),)))
    return region.geometry


@pytest.fixture
def tools(album):
    return SmartTools(album({"disc.png": scene()[0]}))


def test_loose_box_becomes_tight_box_and_brush(tools):
    disc = scene()[1]
    tight, brush = ask(tools, box(115, 85, 165, 115))
    assert (tight["from_name"], tight["type"], brush["from_name"], brush["type"]) == (
        "box", "rectanglelabels", "brush", "brushlabels",
    )  # fmt: skip
    assert tight["value"]["rectanglelabels"] == brush["value"]["brushlabels"] == ["Car"]
    left, top, right, bottom = disc.bounds
    assert iou(shape(tight), Rectangle(left, top, right - left, bottom - top)) > 0.94
    assert iou(shape(brush), Mask.from_array(disc.mask(W, H))) > 0.93


OUTLETS = {
    "brush": (BRUSH, Mask),
    "polygon": (POLYGON, Polygon),
    "ellipse": (ELLIPSE, Ellipse),
    "bits": (BITMASK, Mask),
}


@pytest.mark.parametrize("case", OUTLETS)
def test_click_is_answered_on_its_reserved_control(case, tools):
    outlet, kind = OUTLETS[case]
    [result] = ask(tools, click(200, 140), outlets=outlet)
    assert isinstance(shape(result), kind)
    assert iou(shape(result), scene()[1]) > 0.85


@pytest.mark.parametrize("tag", ["Brush", "Polygon", "Ellipse", "Bitmask"])
def test_click_is_answered_by_a_shape_that_draws_labels(tools, tag):
    xml = f"""<View><Image name="image" value="$image"/><Labels name="label" toName="image">{LABELS}</Labels>
    <KeyPoint name="kp" toName="image" smartOnly="true"/><{tag} name="shape" toName="image" smart="false"/></View>"""
    config = LabelConfig.parse(xml)
    assert serves_smart_tools(config)
    drawn = click(200, 140)
    value = {name: drawn["value"][name] for name in ("x", "y", "width")}
    prompts = [
        {**drawn, "type": "keypoint", "value": value},
        {**drawn, "from_name": "label", "type": "labels", "value": {**value, "labels": ["Car"]}},
    ]
    results = tools.answer({"id": 3, "data": {"image": "disc.png"}}, config, {"result": prompts}).result
    assert [(one["from_name"], one["type"]) for one in results] == [("shape", tag.lower()), ("label", "labels")]
    assert results[1]["value"]["labels"] == ["Car"]
    assert iou(shape(results[0]), scene()[1]) > 0.85


def test_click_becomes_a_box_without_reserved_control(tools):
    [result] = ask(tools, click(200, 140), outlets="")
    assert (result["from_name"], result["type"]) == ("box", "rectanglelabels")


def test_answers_have_fresh_ids_a_score_and_no_meta(tools):
    prompt = box(115, 85, 165, 115)
    results = ask(tools, prompt) + ask(tools, prompt)
    assert len({result["id"] for result in results} | {"drawn"}) == 5
    assert all(
        result["id"].startswith("smart-") and 0 < result["score"] <= 1 and "meta" not in result for result in results
    )
    assert [result["value"] for result in results[:2]] == [result["value"] for result in results[2:]]  # deterministic


def test_negative_click_removes_its_object(album):
    """Two touching discs of one colour: a negative click on the second one cuts it off."""
    image, first = scene(cx=140, rx=60, ry=60)
    other = Ellipse(255, 140, 60, 60)
    image[other.mask(W, H)] = image[140, 140]
    tools = SmartTools(album({"disc.png": image}))
    both = box(70, 70, 250, 140)
    before, after = ask(tools, both), ask(tools, both, click(140, 140), click(270, 140, positive=False))
    assert not shape(after[-1]).array()[140, 270]
    assert (
        iou(shape(after[-1]), Mask.from_array(first.mask(W, H)))
        > iou(shape(before[-1]), Mask.from_array(first.mask(W, H))) + 0.2
    )


def test_redrawn_box_replaces_its_object(album):
    image, first = scene(cx=100, rx=40, ry=40)
    second = Ellipse(300, 150, 50, 50)
    image[second.mask(W, H)] = (30, 60, 210)
    tools = SmartTools(album({"disc.png": image}))
    results = ask(tools, box(50, 90, 100, 100), box(52, 92, 96, 96), box(240, 92, 120, 116), outlets="")
    assert [round(shape(result).bounds[0] / 10) for result in results] == [6, 25]
    assert iou(shape(results[0]), Rectangle(60, 100, 80, 80)) > 0.9
    assert first.bounds[0] == 60


def test_leftover_prompts_of_other_labels_are_ignored(tools):
    results = ask(tools, box(0, 0, 60, 60, label="Bg"), box(115, 85, 165, 115), outlets="")
    assert [result["value"]["rectanglelabels"] for result in results] == [["Car"]]


def test_rotated_box_keeps_its_rotation(tools):
    [result] = ask(tools, box(150, 60, 150, 130, value={"rotation": 20}), outlets="")
    assert result["value"]["rotation"] == 20
    assert shape(result).area < 150 * 130


def test_separate_labels_control_is_answered(tools):
    config = LabelConfig.parse(
        f"""<View><Image name="image" value="$image"/><Labels name="labels" toName="image">{LABELS}</Labels>
        <Rectangle name="shape" toName="image" smart="true"/></View>"""
    )
    drawn = box(115, 85, 165, 115, from_name="shape", type="rectangle")
    position = {key: drawn["value"][key] for key in ("x", "y", "width", "height", "rotation")}
    named = {**drawn, "from_name": "labels", "type": "labels", "value": {**position, "labels": ["Car"]}}
    drawn["value"] = position
    context = {"result": [drawn, named]}
    results = tools.answer({"id": 1, "data": {"image": "disc.png"}}, config, context).result
    assert [(result["from_name"], result["type"]) for result in results] == [
        ("shape", "rectangle"),
        ("labels", "labels"),
    ]
    assert results[0]["id"] == results[1]["id"] != "drawn"
    assert results[1]["value"]["labels"] == ["Car"]


def test_prompted_image_of_a_list_is_used(album):
    photos = album({"a.png": scene(cx=90, rx=50)[0], "b.png": scene()[0]})
    config = LabelConfig.parse(CONFIG.format("").replace('value="$image"', 'valueList="$image"'))
    context = {"result": [box(115, 85, 165, 115, item_index=1)]}
    [result] = SmartTools(photos).answer({"id": 1, "data": {"image": ["a.png", "b.png"]}}, config, context).result
    assert photos.asked == [("b.png", 1)]
    assert result["item_index"] == 1


def test_reduced_image_yields_original_pixels():
    image, disc = scene()

    class Halved:
        def photo(self, url, *, task_id=None, max_side=None, **_):
            return DecodedImage(np.ascontiguousarray(image[::2, ::2]), W, H)

    _, brush = ask(SmartTools(Halved()), box(115, 85, 165, 115))
    assert (brush["original_width"], brush["original_height"]) == (W, H)
    assert iou(shape(brush), Mask.from_array(disc.mask(W, H))) > 0.9


FAILURES = {
    "no photo": {"url": "none.png"},
    "no address": {"task": {"id": 1, "data": {}}},
    "data of a wrong type": {"task": {"id": 1, "data": None}},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_box_is_returned_on_any_failure(failure, album):
    tools = SmartTools(album({"none.png": MediaMissing("none.png", "gone")}))
    results = ask(tools, box(115, 85, 165, 115), outlets=POLYGON, **FAILURES[failure])
    assert [result["type"] for result in results] == ["rectanglelabels", "polygonlabels"]
    assert (
        shape(results[0]) == Rectangle(115, 85, 165, 115)
        or iou(shape(results[0]), Rectangle(115, 85, 165, 115)) > 0.999
    )
    assert "drawn" not in {result["id"] for result in results}


def test_failing_segmenter_returns_the_box(tools, monkeypatch):
    monkeypatch.setattr(OutlineSegmenter, "segment", lambda *_: 1 / 0)
    [result] = ask(tools, box(115, 85, 165, 115), outlets="")
    assert iou(shape(result), Rectangle(115, 85, 165, 115)) > 0.999


NOWHERE = {
    "nothing": [],
    "only a negative click": [click(10, 10, positive=False)],
    "no value": [{**box(1, 1, 5, 5), "value": None}],
    "not an object": ["x"],
    "a click outside the image": [click(-900, -900)],
}


@pytest.mark.parametrize("case", NOWHERE)
def test_prompt_without_position_returns_nothing(case, tools):
    assert ask(tools, *NOWHERE[case]) == []


def test_concurrent_images_are_not_mixed_up(album):
    positions = [(x, y) for x in (80, 160, 240, 320) for y in (70, 150, 220)]
    photos = album({f"{x}-{y}.png": scene(cx=x, cy=y, rx=40, ry=40, seed=x + y)[0] for x, y in positions})
    tools = SmartTools(photos)
    alone = {position: SmartTools(photos) for position in positions}

    def work(number):
        x, y = positions[number % len(positions)]
        prompt = box(x - 52, y - 50, 103, 102)
        results = ask(tools, prompt, url=f"{x}-{y}.png")
        return (x, y), [result["value"] for result in results], shape(results[0])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(work, range(96)))
    for (x, y), _, tight in answers:
        assert iou(tight, Rectangle(x - 40, y - 40, 80, 80)) > 0.9
    for position in positions:
        values = [values for at, values, _ in answers if at == position]
        x, y = position
        wanted = [result["value"] for result in ask(alone[position], box(x - 52, y - 50, 103, 102), url=f"{x}-{y}.png")]
        assert all(result == wanted for result in values)


def test_lru_computes_once_and_evicts_the_oldest():
    cache, computed, started = SingleFlightLRU(2), [], threading.Barrier(8)

    def get(key):
        started.wait()
        return cache.get(key, lambda: computed.append(key) or key.upper())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(get, "aaaabbbb")) == {"A", "B"}
    assert sorted(computed) == ["a", "b"]
    cache.get("a", lambda: computed.append("again"))
    assert cache.get("c", lambda: "C") == "C"
    assert cache.get("a", lambda: "new") == "A"
    assert cache.get("b", lambda: "new") == "new"


def test_lru_does_not_store_failures():
    cache = SingleFlightLRU(2)
    with pytest.raises(MediaMissing):
        cache.get("a", lambda: (_ for _ in ()).throw(MediaMissing("a", "gone")))
    assert cache.get("a", lambda: "there") == "there"


def peak_mb(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_mask_on_a_large_image_uses_little_memory():
    level = cv2.GaussianBlur(np.pad(np.ones((80, 80), np.float32), 40, constant_values=-1), (0, 0), 5)
    large = InstanceMask(level, (0, 0, 8000, 8000), 0.9)
    assert peak_mb(large.box) < 60  # the photo's pixels as floats: 256
    assert peak_mb(lambda: large.mask(8000, 8000)) < 260
    assert (large.mask(8000, 8000).array() != large.pixels()).mean() < 1e-4


def test_cached_embeddings_release_the_decoding_budget():
    budget = MemoryBudget(100_000_000, wait_s=0.1)
    file = io.BytesIO()
    Image.new("RGB", (2600, 2600)).save(file, "PNG")

    class Photos:
        def photo(self, url, *, task_id=None, max_side=None):
            return load_image(file.getvalue(), max_side=max_side, budget=budget)

    tools = SmartTools(Photos())
    ask(tools, box(115, 85, 165, 115))
    with budget.lease(budget.limit):
        pass


def test_mask_converts_to_box_and_polygon():
    level = np.full((10, 20), -1, np.float32)
    level[2:5, 3:9] = 1
    mask = InstanceMask(level, (100, 50, 120, 60), 1.0)
    assert mask.box() == Rectangle(103, 52, 6, 3)
    assert mask.polygon().bounds == pytest.approx((103, 52, 109, 55), abs=0.05)
    assert mask.mask(200, 100).bounds == (103, 52, 109, 55)


SERVED = {
    "box": ('<RectangleLabels name="a" toName="image" smart="true"><Label value="x"/></RectangleLabels>', True),
    "no smart attribute": ('<RectangleLabels name="a" toName="image"><Label value="x"/></RectangleLabels>', False),
    "clicks with no outlet": (
        '<KeyPointLabels name="a" toName="image" smart="true"><Label value="x"/></KeyPointLabels>', False,
    ),
    "clicks with one": (
        (
            '<KeyPointLabels name="a" toName="image" smartOnly="true"><Label value="x"/></KeyPointLabels>'
            '<BrushLabels name="b" toName="image" smart="false"><Label value="x"/></BrushLabels>'
        ),
        True,
    ),
    "polygons, which send nothing": (
        '<PolygonLabels name="a" toName="image" smart="true"><Label value="x"/></PolygonLabels>', False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SERVED)
def test_smart_tools_need_a_config_that_can_be_served(case):
    controls, served = SERVED[case]
    config = LabelConfig.parse(f'<View><Image name="image" value="$image"/>{controls}</View>')
    assert serves_smart_tools(config) is served


def test_predict_answers_a_prompt(client_of, labelloop_model, album):
    client = client_of(labelloop_model(), album({"disc.png": scene()[0]}))
    body = {
        "tasks": [{"id": 1, "data": {"image": "disc.png"}}],
        "label_config": CONFIG.format(BRUSH),
        "project": "1.1",
        "params": {"login": None, "password": None, "context": {"result": [box(115, 85, 165, 115)]}},
    }
    [entry] = client.post("/predict", json=body).json["results"]
    assert [result["type"] for result in entry["result"]] == ["rectanglelabels", "brushlabels"]
    assert entry["model_version"] == "smart-outline"


CROPPED = {
    "upright": Rectangle(120, 80, 160, 120),
    "rotated": Rectangle(180, 60, 150, 110, 30),
    "over the edge": Rectangle(150, 60, 250, 160),
    "small": Rectangle(195, 135, 9, 11),
}


@pytest.mark.parametrize("case", CROPPED)
def test_crop_maps_back_to_its_position(case):
    mask = scene()[1].mask(W, H)
    view = BoxCrop(CROPPED[case], W, H)
    crop = view.render(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2), 160)
    mapped = InstanceMask(view.to_image((crop[..., 0] / 255 - 0.5).astype(np.float32)), view.bounds, 1.0).mask(W, H)
    left, top, right, bottom = view.bounds
    visible = np.zeros_like(mask)
    visible[top:bottom, left:right] = mask[top:bottom, left:right]
    outside = view.to_image(np.ones((160, 160), np.float32)) < 0  # corners of the bounds outside the rotated crop
    visible[top:bottom, left:right] &= cv2.resize(outside.astype(np.uint8), (right - left, bottom - top)) == 0
    assert iou(mapped, Mask.from_array(visible)) > 0.95


def test_masks_share_the_decoding_budget(monkeypatch):
    budget = MemoryBudget(1000, wait_s=0.01)
    leased = []
    lease = budget.lease
    monkeypatch.setattr(budget, "lease", lambda weight, **options: leased.append(weight) or lease(weight, **options))
    tools = SmartTools(SimpleNamespace(budget=budget))
    drawn = []
    monkeypatch.setattr("ml_backend.smart.tools._results", lambda _, __, mask, ___: drawn.append(mask) or [])
    request, mask = SimpleNamespace(last=SimpleNamespace(width=30, height=10)), object()
    tools._draw(request, None, mask, None)
    with budget.lease(500):
        tools._draw(request, None, mask, None)  # 900 bytes are not free: the box alone
    assert drawn == [mask, None]
    assert leased[:1] == [900]


@pytest.mark.parametrize("where", ["while the image waits for memory", "before it"])
def test_a_busy_backend_returns_the_box_as_drawn(where, album):
    class Full:
        def photo(self, url, **_):
            raise Busy(reason="3 jobs already wait for memory.")

    tools = SmartTools(Full() if where.startswith("while") else album({"disc.png": scene()[0]}))
    config = LabelConfig.parse(CONFIG.format(POLYGON))
    task, context = {"id": 3, "data": {"image": "disc.png"}}, {"result": [box(120, 80, 160, 120)]}
    answer = tools.answer(task, config, context, busy="" if where.startswith("while") else "too many prompts")
    drawn, outline = answer.result
    assert shape(drawn) == Rectangle(120, 80, 160, 120)
    assert Polygon(shape(outline).points).bounds == pytest.approx(shape(drawn).bounds)
    assert all("was busy" in result["meta"]["text"][0] for result in answer.result)
