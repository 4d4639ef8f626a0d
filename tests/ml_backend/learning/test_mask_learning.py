"""A project of polygons learns how its people draw masks; pre-labels and smart tools follow."""

from labelloop.labeling.result import Result
from labelloop.labeling.studio.config import LabelConfig
from labelloop.labeling.studio.task import ModelPrediction
from ml_backend.heads.masks import MasksHead
from ml_backend.predict.label_mapping import find_targets
from ml_backend.predict.predictor import Predictor
from ml_backend.smart import SmartTools
from tests.drawn import SIDE
from tests.ml_backend.learning.conftest import PROJECT, box_json, draw_discs
from tests.read_regions import read_regions

POLYGONS = """<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">
<Label value="Disc"/><Label value="Square"/></PolygonLabels></View>"""
SMART = POLYGONS.replace('toName="image">', 'toName="image" smart="false">').replace(
    "</View>",
    """<RectangleLabels name="box" toName="image" smart="true" smartOnly="true"><Label value="Disc"/></RectangleLabels>
    </View>""",
)


def diamond(label, box):
    """People of this project draw the corners of a diamond around every object."""
    x0, y0, x1, y1 = (100 * side / SIDE for side in box)
    points = [[(x0 + x1) / 2, y0], [x1, (y0 + y1) / 2], [(x0 + x1) / 2, y1], [x0, (y0 + y1) / 2]]
    value = {"points": points, "closed": True, "polygonlabels": [label]}
    return {**box_json(label, box), "type": "polygonlabels", "value": value}


def share_of_box(region, box):
    return region.geometry.area / ((box[2] - box[0]) * (box[3] - box[1]))


def test_masks_are_learned_served_and_used_by_smart_tools(context, studio, learn, policy):
    policy("debounce_s = 0\nheld_out = 0\n")
    studio.put_project(PROJECT, label_config=POLYGONS)
    tasks = [studio.add_image(seed) for seed in range(8)]
    for seed, task in enumerate(tasks):
        studio.annotate(task, 1, [diamond(*item) for item in draw_discs(seed)[1]])
    run = learn(tasks=tasks)
    assert run.verdict == "published", run.reason
    metrics = run.metrics.heads["masks"]
    assert metrics.passed, metrics.reason
    assert metrics.value > metrics.parent + 0.1
    detector = context.base_models.detector(context.base_models.served(PROJECT).version)
    head = detector.heads["masks"]
    assert isinstance(head, MasksHead)

    config = LabelConfig.parse(POLYGONS)
    targets = find_targets(config, detector.names.names, provides=detector.provides, answers=detector.answers)
    task = studio.add_image(21)
    json = {"id": task, "data": studio.tasks_by_id[task]["data"]}
    [entry] = Predictor(context.media, score_threshold=0.3).predict([json], detector=detector, targets=targets)
    _, box = draw_discs(21)[1][0]
    regions = read_regions(ModelPrediction(results=tuple(map(Result, entry.result))))
    shares = [share_of_box(region, box) for region in regions if region.labels == ("Disc",)]
    # A diamond covers .5 of its box, the disc itself .79.
    assert any(0.35 < share < 0.66 for share in shares), shares

    prompt = {**box_json("Disc", (box[0] - 5, box[1] - 5, box[2] + 5, box[3] + 5)), "from_name": "box"}
    tools = SmartTools(context.media)
    areas = []
    for served in (None, head):
        answer = tools.answer(json, LabelConfig.parse(SMART), {"result": [prompt]}, head=served)
        drawn = read_regions(ModelPrediction(results=tuple(map(Result, answer.result))))
        areas.append(next(share_of_box(region, box) for region in drawn if region.type == "polygonlabels"))
    assert areas[1] < 0.66 < areas[0]
