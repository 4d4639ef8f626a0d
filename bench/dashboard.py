"""The dashboard with 100,000 judged tasks behind it: what each page costs, and what its board takes to count."""

import os
import random
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from qc_webhooks.decision.dispute_drawing import CONSENSUS, ConflictText, DisputeDrawing, GroupView, RegionOutline
from qc_webhooks.schedulers.project_summary import SummaryScheduler
from qc_webhooks.server.app import create_app
from qc_webhooks.store.tables import FACTS, PROJECTS, TASKS
from qc_webhooks.store.task_facts import facts_row
from qc_webhooks.verdict.task_facts import AnnotationFacts, AnnotatorPair, ObjectFacts, RegionFacts, TaskFacts

TASKS_BEHIND, PEOPLE, PROJECT = 100_000, 12, 7
LABELS = ("Car", "Person", "Van", "Bus", "Bicycle")
ROUNDS, PASSWORD = 30, "a-password-of-the-bench"
PAGES = {
    "overview": "",
    "disputes, first page": "disputes",
    "disputes, page 500": "disputes?page=500",
    "disputes of one kind by one person": "disputes?kind=label&person=3&sort=newest",
    "one dispute": "disputes/{task}",
    "agreement": "agreement",
    "labels": "labels",
    "annotators": "annotators",
    "one annotator": "annotators/3",
    "savings and what-if": "what-if?agreement=0.8&annotators=2&max_annotators=3&every_control=yes",
}


class Names:
    """Label Studio as far as a board asks it."""

    def project(self, _):
        """The project."""
        return {"title": "Streets"}

    def users(self):
        """Everybody."""
        return [{"id": who, "first_name": f"Person {who}"} for who in range(1, PEOPLE + 1)]


def run() -> str:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            home=Path(folder), dashboard_password=PASSWORD, label_studio_api_key="none", log_level="ERROR"
        )
        engine = open_database(settings)
        fill(engine, TASKS_BEHIND)
        started = time.process_time()
        SummaryScheduler(engine, Names()).run()
        counted = time.process_time() - started
        size = sum(file.stat().st_size for file in Path(folder).glob("labelloop.sqlite3*")) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines = [
            f"{TASKS_BEHIND:,} judged tasks of {PEOPLE} annotators on SQLite ({size:.0f} MiB). Each page",
            f"{ROUNDS} times, without browser and network; by the clock and in CPU time, because other work shared the",
            f"processors (load average {os.getloadavg()[0]:.0f} on {os.cpu_count()}).",
            "",
            "| page | p50, ms | p95, ms (at most 300) | CPU p50, ms | CPU p95, ms | KiB |",
            "|---|---|---|---|---|---|",
            *pages(settings),
            "",
            f"Counting the board of all tasks: {counted:.1f} s of CPU in the worker; at most {peak:.0f} MiB resident,",
            "what the bench needs to fill the database included.",
        ]
        engine.dispose()
    return "\n".join(lines)


def pages(settings):
    """A row of the table for each page."""
    client = create_app(settings).test_client()
    token = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/dashboard/login").text)[1]
    client.post("/dashboard/login", data={"csrf_token": token, "password": PASSWORD})
    task = re.search(r"disputes/(\d+)\?*", client.get(f"/dashboard/{PROJECT}/disputes").text)[1]
    for name, path in PAGES.items():
        took, spent, size = [], [], 0
        for _ in range(ROUNDS):
            started, cpu = time.perf_counter(), time.process_time()
            answer = client.get(f"/dashboard/{PROJECT}/{path.format(task=task)}")
            took.append(1000 * (time.perf_counter() - started))
            spent.append(1000 * (time.process_time() - cpu))
            assert answer.status_code == 200, (name, answer.status_code)
            size = len(answer.data)
        told = [f"{statistics.median(each):.0f} | {statistics.quantiles(each, n=20)[-1]:.0f}" for each in (took, spent)]
        yield f"| {name} | {told[0]} | {told[1]} | {size / 1024:.0f} |"


def fill(engine, count, *, seed=0):
    """Judged tasks straight into the tables: two annotators each, a third for some, disputes with their drawings."""
    rng, now = random.Random(seed), time.time()
    with engine.begin() as connection:
        connection.execute(
            sa.insert(PROJECTS).values(project=PROJECT, connected_at=now, cursor="", settled=True, polled_at=now)
        )
    for start in range(1, count + 1, 5000):
        rows = [
            task_rows(rng, number, now - 86_400 * 60 * (1 - number / count))
            for number in range(start, min(start + 5000, count + 1))
        ]
        with engine.begin() as connection:
            connection.execute(sa.insert(TASKS), [row for row, _ in rows])
            connection.execute(sa.insert(FACTS), [row for _, row in rows])


def task_rows(rng, number, at):
    """The rows of one task in ``qc_tasks`` and ``qc_facts``."""
    who = rng.sample(range(1, PEOPLE + 1), 2 if rng.random() < 0.85 else 3)
    things = []
    for _ in range(rng.randint(2, 9)):
        truth = rng.choice(LABELS)
        marks = [
            RegionFacts(
                person,
                (truth if rng.random() < 0.95 else rng.choice(LABELS),),
                rng.uniform(500, 5000),
                rng.randrange(3),
            )
            for person in sorted(who)
            if rng.random() < 0.95
        ]
        things += [ObjectFacts("label", tuple(marks))] if marks else []
    pairs = []
    for place, one in enumerate(who):
        for other in who[place + 1 :]:
            score = rng.betavariate(8, 1.0)
            pairs.append(AnnotatorPair(one, other, score, {"label": score}, len(things), 0))
    agreement = statistics.fmean(pair.overall for pair in pairs)
    outcome = "agreed" if max(pair.overall for pair in pairs) >= 0.7 else "disputed"
    turns = tuple(
        AnnotationFacts(person, at + place, rng.lognormvariate(3, 0.5), len(things)) for place, person in enumerate(who)
    )
    review = outcome == "disputed" and len(who) == 3
    facts = TaskFacts(
        number, turns, tuple(things), (), tuple(pairs), (), (f"s3://bucket/{number}.jpg",), agreement, outcome, review
    )
    drawing = drawn(rng, who) if outcome == "disputed" else None
    task = {
        "project": PROJECT, "task": number, "born": "", "fingerprint": str(number), "outcome": outcome,
        "agreement": agreement, "annotators": len(who), "review": review, "keys": '{"qc_note": "They differ."}',
        "decided_at": at,
    }  # fmt: skip
    return task, facts_row(PROJECT, facts, drawing)


def drawn(rng, who):
    """A dispute over a few boxes."""

    def outline(disputed):
        x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
        ring = ((x, y), (x + 0.2, y), (x + 0.2, y + 0.2), (x, y + 0.2))
        return RegionOutline((ring,), False, rng.choice(LABELS), 0, disputed)

    views = [
        GroupView(chr(65 + place), (person,), tuple(outline((0,)) for _ in range(4)))
        for place, person in enumerate(who)
    ]
    kinds = ("missing", "extra", "label", "low_overlap")
    words = "One annotator has a Car, another does not."
    said = [ConflictText(rng.choice(kinds), "label", tuple(who[:2]), words, ("Car",), (), 0) for _ in range(2)]
    return DisputeDrawing(
        tuple(said), (*views, GroupView(CONSENSUS, (), tuple(outline(()) for _ in range(3)))), ((1000, 800),)
    )
