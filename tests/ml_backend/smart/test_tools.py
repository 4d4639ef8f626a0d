"""Smart tools: what an annotator gets for a box or clicks, on drawn photos whose objects are known to the pixel."""

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
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.regions import regions
from labelloop.labeling.studio.task import Prediction, Result
from labelloop.service.media import MediaMissing, Photo, load_photo
from labelloop.service.memory_budget import MemoryBudget
from ml_backend.smart import SmartTools, serves_smart_tools
from ml_backend.smart.crop import View
from ml_backend.smart.crop_mask import InstanceMask
from ml_backend.smart.embedding_cache import SingleFlightLRU
from ml_backend.smart.outline_network import Outline

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
    """A photo of one disc on a noisy ground, and the disc."""
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
    [region] = regions(Prediction(results=(Result(result),)))
    return region.geometry


@pytest.fixture
def tools(album):
    return SmartTools(album({"disc.png": scene()[0]}))


def test_a_loose_box_becomes_the_tight_one_and_its_brush(tools):
    disc = scene()[1]
    tight, brush = ask(tools, box(115, 85, 165, 115))
    assert (tight["from_name"], tight["type"], brush["from_name"], brush["type"]) == (
        "box", "rectanglelabels", "brush", "brushlabels",
    )  # fmt: skip
    assert tight["value"]["rectanglelabels"] == brush["value"]["brushlabels"] == ["Car"]
    left, top, right, bottom = disc.bounds
    assert iou(shape(tight), Rectangle(left, top, right - left, bottom - top)) > 0.94
    assert iou(shape(brush), Mask.of(disc.mask(W, H))) > 0.93


OUTLETS = {
    "brush": (BRUSH, Mask),
    "polygon": (POLYGON, Polygon),
    "ellipse": (ELLIPSE, Ellipse),
    "bits": (BITMASK, Mask),
}


@pytest.mark.parametrize("case", OUTLETS)
def test_a_click_is_answered_on_the_control_kept_for_it(case, tools):
    outlet, kind = OUTLETS[case]
    [found] = ask(tools, click(200, 140), outlets=outlet)
    assert isinstance(shape(found), kind)
    assert iou(shape(found), scene()[1]) > 0.85


def test_without_such_a_control_a_click_becomes_a_box(tools):
    [found] = ask(tools, click(200, 140), outlets="")
    assert (found["from_name"], found["type"]) == ("box", "rectanglelabels")


def test_answers_have_fresh_ids_a_score_and_no_meta(tools):
    prompt = box(115, 85, 165, 115)
    found = ask(tools, prompt) + ask(tools, prompt)
    assert len({one["id"] for one in found} | {"drawn"}) == 5
    assert all(one["id"].startswith("smart-") and 0 < one["score"] <= 1 and "meta" not in one for one in found)
    assert [one["value"] for one in found[:2]] == [one["value"] for one in found[2:]]  # and say the same twice


def test_an_alt_click_takes_away_what_lies_there(album):
    """Two discs of one colour that touch: a click beside the first cuts the second off."""
    image, one = scene(cx=140, rx=60, ry=60)
    other = Ellipse(255, 140, 60, 60)
    image[other.mask(W, H)] = image[140, 140]
    tools = SmartTools(album({"disc.png": image}))
    both = box(70, 70, 250, 140)
    before, after = ask(tools, both), ask(tools, both, click(140, 140), click(270, 140, positive=False))
    assert not shape(after[-1]).array()[140, 270]
    assert iou(shape(after[-1]), Mask.of(one.mask(W, H))) > iou(shape(before[-1]), Mask.of(one.mask(W, H))) + 0.2


def test_several_boxes_are_several_objects_and_a_redrawn_one_is_the_same(album):
    image, first = scene(cx=100, rx=40, ry=40)
    second = Ellipse(300, 150, 50, 50)
    image[second.mask(W, H)] = (30, 60, 210)
    tools = SmartTools(album({"disc.png": image}))
    found = ask(tools, box(50, 90, 100, 100), box(52, 92, 96, 96), box(240, 92, 120, 116), outlets="")
    assert [round(shape(one).bounds[0] / 10) for one in found] == [6, 25]
    assert iou(shape(found[0]), Rectangle(60, 100, 80, 80)) > 0.9
    assert first.bounds[0] == 60


def test_prompts_left_behind_by_another_label_do_not_count(tools):
    found = ask(tools, box(0, 0, 60, 60, label="Bg"), box(115, 85, 165, 115), outlets="")
    assert [one["value"]["rectanglelabels"] for one in found] == [["Car"]]


def test_a_turned_box_stays_turned(tools):
    [found] = ask(tools, box(150, 60, 150, 130, value={"rotation": 20}), outlets="")
    assert found["value"]["rotation"] == 20
    assert shape(found).area < 150 * 130


def test_labels_beside_a_separate_rectangle_stay_beside_it(tools):
    config = LabelConfig.parse(
        f"""<View><Image name="image" value="$image"/><Labels name="labels" toName="image">{LABELS}</Labels>
        <Rectangle name="shape" toName="image" smart="true"/></View>"""
    )
    drawn = box(115, 85, 165, 115, from_name="shape", type="rectangle")
    place = {key: drawn["value"][key] for key in ("x", "y", "width", "height", "rotation")}
    named = {**drawn, "from_name": "labels", "type": "labels", "value": {**place, "labels": ["Car"]}}
    drawn["value"] = place
    context = {"result": [drawn, named]}
    found = tools.answer({"id": 1, "data": {"image": "disc.png"}}, config, context).result
    assert [(one["from_name"], one["type"]) for one in found] == [("shape", "rectangle"), ("labels", "labels")]
    assert found[0]["id"] == found[1]["id"] != "drawn"
    assert found[1]["value"]["labels"] == ["Car"]


def test_the_photo_of_a_list_that_the_prompt_lies_on_is_the_one_looked_at(album):
    photos = album({"a.png": scene(cx=90, rx=50)[0], "b.png": scene()[0]})
    config = LabelConfig.parse(CONFIG.format("").replace('value="$image"', 'valueList="$image"'))
    context = {"result": [box(115, 85, 165, 115, item_index=1)]}
    [found] = SmartTools(photos).answer({"id": 1, "data": {"image": ["a.png", "b.png"]}}, config, context).result
    assert photos.asked == [("b.png", 1)]
    assert found["item_index"] == 1


def test_a_photo_kept_smaller_than_it_is_gives_shapes_in_its_own_pixels():
    image, disc = scene()

    class Halved:
        def photo(self, url, *, task_id=None, max_side=None, **_):
            return Photo(np.ascontiguousarray(image[::2, ::2]), W, H)

    _, brush = ask(SmartTools(Halved()), box(115, 85, 165, 115))
    assert (brush["original_width"], brush["original_height"]) == (W, H)
    assert iou(shape(brush), Mask.of(disc.mask(W, H))) > 0.9


MOODS = {
    "no photo": {"url": "none.png"},
    "no address": {"task": {"id": 1, "data": {}}},
    "data that is none": {"task": {"id": 1, "data": None}},
}


@pytest.mark.parametrize("mood", MOODS)
def test_whatever_fails_a_box_is_answered_with_itself(mood, album):
    tools = SmartTools(album({"none.png": MediaMissing("none.png", "gone")}))
    found = ask(tools, box(115, 85, 165, 115), outlets=POLYGON, **MOODS[mood])
    assert [one["type"] for one in found] == ["rectanglelabels", "polygonlabels"]
    assert shape(found[0]) == Rectangle(115, 85, 165, 115) or iou(shape(found[0]), Rectangle(115, 85, 165, 115)) > 0.999
    assert "drawn" not in {one["id"] for one in found}


def test_a_segmenter_that_fails_costs_nothing_but_tightness(tools, monkeypatch):
    monkeypatch.setattr(Outline, "segment", lambda *_: 1 / 0)
    [found] = ask(tools, box(115, 85, 165, 115), outlets="")
    assert iou(shape(found), Rectangle(115, 85, 165, 115)) > 0.999


NOWHERE = {
    "nothing": [],
    "only a click beside": [click(10, 10, positive=False)],
    "no value": [{**box(1, 1, 5, 5), "value": None}],
    "not an object": ["x"],
    "a click off the photo": [click(-900, -900)],
}


@pytest.mark.parametrize("case", NOWHERE)
def test_a_prompt_that_says_no_place_is_answered_with_nothing(case, tools):
    assert ask(tools, *NOWHERE[case]) == []


def test_photos_worked_on_at_once_are_never_mixed_up(album):
    places = [(x, y) for x in (80, 160, 240, 320) for y in (70, 150, 220)]
    photos = album({f"{x}-{y}.png": scene(cx=x, cy=y, rx=40, ry=40, seed=x + y)[0] for x, y in places})
    tools = SmartTools(photos)
    alone = {place: SmartTools(photos) for place in places}

    def work(turn):
        x, y = places[turn % len(places)]
        given = box(x - 52, y - 50, 103, 102)
        found = ask(tools, given, url=f"{x}-{y}.png")
        return (x, y), [one["value"] for one in found], shape(found[0])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(work, range(96)))
    for (x, y), _, tight in answers:
        assert iou(tight, Rectangle(x - 40, y - 40, 80, 80)) > 0.9
    for place in places:
        values = [values for at, values, _ in answers if at == place]
        x, y = place
        wanted = [one["value"] for one in ask(alone[place], box(x - 52, y - 50, 103, 102), url=f"{x}-{y}.png")]
        assert all(one == wanted for one in values)


def test_looks_are_made_once_for_many_threads_and_the_oldest_go_first():
    looks, made, started = SingleFlightLRU(2), [], threading.Barrier(8)

    def get(key):
        started.wait()
        return looks.get(key, lambda: made.append(key) or key.upper())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(get, "aaaabbbb")) == {"A", "B"}
    assert sorted(made) == ["a", "b"]
    looks.get("a", lambda: made.append("again"))
    assert looks.get("c", lambda: "C") == "C"
    assert looks.get("a", lambda: "new") == "A"
    assert looks.get("b", lambda: "new") == "new"


def test_a_photo_that_could_not_be_had_is_asked_for_again():
    looks = SingleFlightLRU(2)
    with pytest.raises(MediaMissing):
        looks.get("a", lambda: (_ for _ in ()).throw(MediaMissing("a", "gone")))
    assert looks.get("a", lambda: "there") == "there"


def peak_mb(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_an_object_on_a_large_photo_takes_little_memory():
    level = cv2.GaussianBlur(np.pad(np.ones((80, 80), np.float32), 40, constant_values=-1), (0, 0), 5)
    large = InstanceMask(level, (0, 0, 8000, 8000), 0.9)
    assert peak_mb(large.box) < 60  # the photo's pixels as floats: 256
    assert peak_mb(lambda: large.mask(8000, 8000)) < 260
    assert (large.mask(8000, 8000).array() != large.pixels()).mean() < 1e-4


def test_photos_kept_at_hand_leave_the_memory_to_decoding():
    budget = MemoryBudget(100_000_000, wait_s=0.1)
    file = io.BytesIO()
    Image.new("RGB", (2600, 2600)).save(file, "PNG")

    class Photos:
        def photo(self, url, *, task_id=None, max_side=None):
            return load_photo(file.getvalue(), max_side=max_side, budget=budget)

    tools = SmartTools(Photos())
    ask(tools, box(115, 85, 165, 115))
    with budget.lease(budget.limit):
        pass


def test_a_cutout_has_the_box_of_its_pixels_to_the_pixel():
    level = np.full((10, 20), -1, np.float32)
    level[2:5, 3:9] = 1
    cutout = InstanceMask(level, (100, 50, 120, 60), 1.0)
    assert cutout.box() == Rectangle(103, 52, 6, 3)
    assert cutout.polygon().bounds == (103, 52, 109, 55)
    assert cutout.mask(200, 100).bounds == (103, 52, 109, 55)


SERVED = {
    "box": ('<RectangleLabels name="a" toName="image" smart="true"><Label value="x"/></RectangleLabels>', True),
    "nothing asked for": ('<RectangleLabels name="a" toName="image"><Label value="x"/></RectangleLabels>', False),
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
def test_a_project_gets_smart_tools_where_its_config_asks_for_what_can_be_served(case):
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
    assert [one["type"] for one in entry["result"]] == ["rectanglelabels", "brushlabels"]
    assert entry["model_version"] == "smart-outline"


VIEWED = {
    "upright": Rectangle(120, 80, 160, 120),
    "turned": Rectangle(180, 60, 150, 110, 30),
    "over the edge": Rectangle(150, 60, 250, 160),
    "small": Rectangle(195, 135, 9, 11),
}


@pytest.mark.parametrize("case", VIEWED)
def test_what_a_view_shows_lies_where_it_was_on_the_photo(case):
    mask = scene()[1].mask(W, H)
    view = View(VIEWED[case], W, H)
    shown = view.show(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2), 160)
    found = InstanceMask(view.place((shown[..., 0] / 255 - 0.5).astype(np.float32)), view.bounds, 1.0).mask(W, H)
    left, top, right, bottom = view.bounds
    seen = np.zeros_like(mask)
    seen[top:bottom, left:right] = mask[top:bottom, left:right]
    turned_away = view.place(np.ones((160, 160), np.float32)) < 0  # corners of the bounds that a turned box leaves out
    seen[top:bottom, left:right] &= cv2.resize(turned_away.astype(np.uint8), (right - left, bottom - top)) == 0
    assert iou(found, Mask.of(seen)) > 0.95


def test_masks_are_made_in_the_memory_that_photos_are_decoded_in(monkeypatch):
    budget = MemoryBudget(1000, wait_s=0.01)
    leased = []
    lease = budget.lease
    monkeypatch.setattr(budget, "lease", lambda weight, **options: leased.append(weight) or lease(weight, **options))
    tools = SmartTools(SimpleNamespace(budget=budget))
    drawn = []
    monkeypatch.setattr("ml_backend.smart.tools._drawn", lambda _, __, cutout, ___: drawn.append(cutout) or [])
    asked, cutout = SimpleNamespace(last=SimpleNamespace(width=30, height=10)), object()
    tools._draw(asked, None, cutout, None)
    with budget.lease(500):
        tools._draw(asked, None, cutout, None)  # 900 bytes are not free: the box alone
    assert drawn == [cutout, None]
    assert leased[:1] == [900]
