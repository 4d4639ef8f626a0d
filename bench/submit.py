"""An annotator's Submit in stock Label Studio, with our webhooks and without them, in one alternating run."""

import statistics
import time

from bench.stack import running_stack
from labelloop.service.studio import Studio

ROUNDS, SUBMITS = 12, 10
ALLOWED_MS = 50


def run() -> str:
    """Bring a stack up, submit in blocks with and without our hooks, and give the table."""
    with running_stack() as settings:
        return _table(*_measure(Studio.from_settings(settings)))


def _measure(studio: Studio) -> tuple[list[float], list[float]]:
    """Milliseconds of each Submit, (without, with) our hooks; the order of the blocks changes from round to round."""
    project = int(studio.projects()[0]["id"])
    tasks = [task.id for task in studio.tasks(project)]
    hooks = studio.webhooks(project)
    times: dict[bool, list[float]] = {False: [], True: []}
    box = {"x": 10, "y": 10, "width": 30, "height": 30, "rotation": 0, "rectanglelabels": ["Person"]}
    result = [{"id": "a", "from_name": "objects", "to_name": "image", "type": "rectanglelabels", "value": box}]
    for turn in range(ROUNDS):
        for active in (bool(turn % 2), not turn % 2):
            for hook in hooks:
                studio.update_webhook(hook["id"], is_active=active)
            for number in range(SUBMITS):
                started = time.perf_counter()
                studio.add_annotation(tasks[(turn * SUBMITS + number) % len(tasks)], result, lead_time=3.0)
                times[active].append((time.perf_counter() - started) * 1000)
                time.sleep(0.05)  # a person takes a breath; the worker does its job meanwhile
    return times[False], times[True]


def _table(without: list[float], own: list[float]) -> str:
    def cells(values: list[float]) -> str:
        ordered = sorted(values)
        return f"{statistics.median(ordered):.0f} | {ordered[int(0.95 * len(ordered))]:.0f} | {len(ordered)}"

    slower = statistics.median(own) - statistics.median(without)
    return "\n".join(
        (
            "Submit in stock Label Studio 1.23.2 on SQLite; ML backend, QC and worker on the same machine.",
            f"Blocks of {SUBMITS} submits with our webhooks on and off, in alternating order.",
            "",
            "| Submit | median, ms | p95, ms | n |",
            "|---|---|---|---|",
            f"| without our webhooks | {cells(without)} |",
            f"| with our webhooks (QC and ML backend) | {cells(own)} |",
            "",
            f"Slower at the median by **{slower:.0f} ms**; at most {ALLOWED_MS} ms is asked for.",
            "",
        )
    )


if __name__ == "__main__":
    print(run())
