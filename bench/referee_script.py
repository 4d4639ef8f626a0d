"""Computed by other packages in an environment of their own: KaLOS, crowd-kit, ensemble-boxes. JSON in, JSON out.

`bench.referees` runs it with the Python that ``BENCH_REFEREES`` names, which has ``pip install kalos==0.8.0
crowd-kit ensemble-boxes``. It imports nothing of labelloop.
"""

import json
import logging
import sys
import time


def kalos(given):
    """[(mean over images, global)] at each threshold, and the seconds; greedy, category_lenient."""
    from kalos.iaa.core import calculate_iaa

    processed, categories, raters, number = {}, {}, set(), 0
    for index, image in enumerate(given["images"]):
        by_rater = {}
        for one in image["regions"]:
            number += 1
            categories[one["label"]] = str(one["label"])
            entry = {"id": number, "rater_id": one["rater"], "category_id": one["label"], "bbox": one["bbox"]}
            if "outline" in one:
                entry["segmentation"] = [one["outline"]]
            by_rater.setdefault(one["rater"], []).append(entry)
        raters |= set(image["raters"])
        processed[index] = {"file_name": str(index), "rater_list": image["raters"], "annotations_by_rater": by_rater}
    started = time.process_time()
    found = [
        calculate_iaa(
            processed, categories, "greedy", given["similarity"], "category_lenient", threshold, False, False, False,
            sorted(raters),
        )[:2]
        for threshold in given["thresholds"]
    ]  # fmt: skip
    return {"alpha": [[float(mean), float(together)] for mean, together in found],
            "seconds": time.process_time() - started}  # fmt: skip


def wbf(given):
    """Fused boxes and scores of each task, at each overlap of ``least``."""
    from ensemble_boxes import weighted_boxes_fusion

    result = []
    for least in given["least"]:
        fused = []
        for task in given["tasks"]:
            boxes, scores, _ = weighted_boxes_fusion(
                task, [[1.0] * len(one) for one in task], [[0] * len(one) for one in task], iou_thr=least,
                skip_box_thr=0.0,
            )  # fmt: skip
            fused.append([boxes.tolist(), scores.tolist()])
        result.append(fused)
    return {"fused": result}


def crowd_kit(given):
    """Answer of each item by majority vote and by Dawid-Skene."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene, MajorityVote

    table = pd.DataFrame(given["votes"], columns=["task", "worker", "label"])
    return {
        "majority": MajorityVote().fit_predict(table).to_dict(),
        "dawid_skene": DawidSkene(n_iter=100).fit_predict(table).to_dict(),
    }


REFEREES = {"kalos": kalos, "wbf": wbf, "crowd_kit": crowd_kit}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    answer = REFEREES[sys.argv[1]](json.load(sys.stdin))
    sys.stdout.write("\n" + json.dumps(answer))
