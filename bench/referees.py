"""Figures of KaLOS, crowd-kit and weighted boxes fusion (ensemble-boxes) beside ours, on the same data in one run."""

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np

from labelloop.labeling.geometry.overlap import box_iou, match
from qc_webhooks.agreement.detection_counts import count_detections
from qc_webhooks.statistics.detection_alpha import DetectionAgreement

SCRIPT = Path(__file__).with_name("referee_script.py")
VARIABLE = "BENCH_REFEREES"
ALPHA_THRESHOLDS = (0.2, 0.3, 0.5, 0.75)
# What WBF is tuned over, on the other half of the images: overlap of fused boxes, and share of annotators.
WBF_LEAST, WBF_SHARES = (0.2, 0.3, 0.4, 0.5, 0.55), (0.2, 0.3, 0.34, 0.4, 0.5, 0.6)


def ask(referee, given):
    """The answer of a referee; None where its environment is not on this machine."""
    python = os.environ.get(VARIABLE)
    if not python:
        return None
    command = [python, "-I", str(SCRIPT), referee]  # isolated: `bench/queue.py` would hide the standard library's
    done = subprocess.run(command, check=False, input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{referee} failed: {reason}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def alpha_rows(items):
    """Detection alpha of crowd boxes and of made-up polygons, beside KaLOS."""
    from tests.qc_webhooks.statistics.test_detection_alpha import images

    crowd = [
        (
            [str(who) for who in workers],
            [(str(who), 0, one.geometry) for who, drawn in workers.items() for one in drawn],
        )
        for workers in items.values()
    ]
    polygons = [image for image in images(7, "polygon", count=120) if len(image[0]) > 1]
    for title, seen, similarity in (
        ("crowd boxes", crowd, "bbox_iou_similarity"),
        ("made-up polygons, 4 classes, annotators missing", polygons, "segm_iou_similarity"),
    ):
        theirs = ask("kalos", {"images": [_image(*image) for image in seen], "similarity": similarity,
                               "thresholds": ALPHA_THRESHOLDS})  # fmt: skip
        started = time.process_time()
        found = [_alpha(seen, threshold) for threshold in ALPHA_THRESHOLDS]
        seconds = time.process_time() - started
        for index, (threshold, ours) in enumerate(zip(ALPHA_THRESHOLDS, found, strict=True)):
            values = ours.mean_alpha.value, ours.alpha.value
            beside = "KaLOS not on this machine" if theirs is None else "KaLOS {:.4f}, {:.4f}".format(
                *theirs["alpha"][index])  # fmt: skip
            yield (f"| {title}: detection alpha at IoU {threshold}, mean over images and global "
                   f"| {values[0]:.4f}, {values[1]:.4f} ({beside}) |")  # fmt: skip
        f1 = found[2].f1
        yield f"| ... F1 at IoU 0.5 of one annotator against another | {f1.value:.3f} ({f1.low:.3f} to {f1.high:.3f}) |"
        speed = "" if theirs is None else f" (KaLOS {len(seen) * len(ALPHA_THRESHOLDS) / theirs['seconds']:,.0f})"
        # Ours counts the 19 thresholds of the curve and the intervals each time.
        yield f"| ... images a second, all pairs | {len(seen) * len(ALPHA_THRESHOLDS) / seconds:,.0f}{speed} |"


def _image(raters, drawn):
    regions = []
    for rater, label, shape in drawn:
        left, top, right, bottom = shape.bounds
        one = {"rater": rater, "label": label, "bbox": [left, top, right - left, bottom - top]}
        if hasattr(shape, "points"):
            one["outline"] = [value for point in shape.points for value in point]
        regions.append(one)
    return {"raters": raters, "regions": regions}


def _alpha(seen, threshold):
    from tests.qc_webhooks.statistics.test_detection_alpha import region

    collected = DetectionAgreement()
    for raters, drawn in seen:
        counts = {}
        if drawn:
            regions = [region(label, shape) for _, label, shape in drawn]
            owners = [raters.index(rater) for rater, _, _ in drawn]
            counts = {"label": count_detections(regions, owners, annotators=len(raters), match_iou=threshold)}
        collected.add(counts, annotators=len(raters))
    return collected.estimates()["label"]


def wbf_rows(items, gold, draws):
    """Micro-F1 of weighted boxes fusion with all, 5 and 3 annotators, tuned on the other half of the photos."""
    names = sorted(items)
    halves = names[::2], names[1::2]
    for most, title in ((99, "all"), (5, "5"), (3, "3")):
        figures = []
        for seed in range(1 if most == 99 else draws):
            rng = np.random.default_rng(seed)
            tasks = []
            for workers in items.values():
                chosen = sorted(workers) if len(workers) <= most else rng.choice(sorted(workers), most, replace=False)
                tasks.append([_unit_boxes(workers[who]) for who in chosen])
            answer = ask("wbf", {"tasks": tasks, "least": WBF_LEAST})
            if answer is None:
                yield f"| crowd boxes, {title} annotators: micro-F1 of tuned WBF | not on this machine |"
                return
            counts = {}
            for least, fused in zip(WBF_LEAST, answer["fused"], strict=True):
                for share in WBF_SHARES:
                    counts[least, share] = {
                        item: _hits(np.array(boxes).reshape(-1, 4) * 1000, np.array(scores), share, gold[item])
                        for item, (boxes, scores) in zip(items, fused, strict=True)
                    }
            chosen = []
            for mine, other in (halves, halves[::-1]):
                best = max(counts, key=lambda key: _f1([counts[key][name] for name in mine]))
                chosen += [counts[best][name] for name in other]
            figures.append(_f1(chosen))
        yield f"| crowd boxes, {title} annotators: micro-F1 of WBF, tuned on the other half | {np.mean(figures):.3f} |"


def _unit_boxes(regions):
    return (np.clip([region.geometry.bounds for region in regions], 0, 1000) / 1000).tolist() if regions else []


def _hits(boxes, scores, share, truths):
    kept = boxes[scores >= share - 1e-9]
    return np.array([len(match(box_iou(kept, truths), threshold=0.5)), len(kept), len(truths)])


def _f1(counts):
    hits, found, truths = np.sum(counts, axis=0)
    return 2 * hits / max(found + truths, 1)


def crowd_kit_rows(votes, gold):
    """Accuracy of crowd-kit's majority vote and Dawid-Skene on RTE."""
    rows = [[item, str(who), answer] for item, each in votes.items() for who, (answer,) in each]
    answer = ask("crowd_kit", {"votes": rows})
    if answer is None:
        yield "| RTE, crowd-kit | not on this machine |"
        return
    for key, title in (("majority", "majority vote"), ("dawid_skene", "Dawid-Skene")):
        accuracy = np.mean([str(answer[key][item]) == gold[item][0] for item in gold])
        yield f"| RTE, crowd-kit's {title}: accuracy | {accuracy:.4f} |"
