"""A project as its pages see it: the board, the queue, the policy in force, and what is read of them for a page."""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import sqlalchemy as sa
import structlog
from werkzeug.exceptions import NotFound

from labelloop.service.db.engine import reading
from labelloop.service.settings import Settings
from qc_webhooks.annotators import AnnotatorProfile, DisagreementPattern
from qc_webhooks.dashboard.dispute_queue import Dispute, Queue
from qc_webhooks.dashboard.formatting import KINDS
from qc_webhooks.errors import PolicyError
from qc_webhooks.pipeline.review_project import ReviewStore
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.report.project_summary import ProjectSummary, Savings
from qc_webhooks.report.replay import Replay
from qc_webhooks.schedulers.project_summary import BoardStore
from qc_webhooks.statistics import Estimate
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.store.tables import FACTS
from qc_webhooks.verdict.verdict import OUTCOMES

_KEPT_REPLAYS = 4
_NOTHING = ProjectSummary("", {}, (), False, Estimate.lacking(0), Savings(0, 0, {}, None), 0, (), (), (), (), {})

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Listed:
    """A project in the list of projects."""

    project: int
    title: str
    tasks: int
    disputed: int
    review: int
    agreement: Estimate


class View:
    """One project, for the time of one request.

    Args:
        project: Its id.
        settings: Where its policy and Label Studio are.
        engine: The migrated database.
        replays: Gives the record of a project as of a board's making.
    """

    def __init__(
        self, project: int, settings: Settings, engine: sa.Engine, replays: "Callable[[int, float], Replay | None]"
    ) -> None:
        self.project = project
        self._settings, self._engine, self._replays = settings, engine, replays
        self._shown = BoardStore(engine).board(project)
        self.board = self._shown.board if self._shown else _NOTHING
        self.made_at = self._shown.made_at if self._shown else None
        self.counted = self._shown.tasks if self._shown else 0
        self.queue = Queue(engine, project)

    @property
    def title(self) -> str:
        """The project's title, or its number."""
        return self.board.title or f"Project {self.project}"

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Tasks by verdict, counted now."""
        return self.queue.counts()

    @property
    def judged(self) -> int:
        """Tasks that were judged, counted now."""
        return sum(self.counts.get(outcome, 0) for outcome in OUTCOMES)

    @cached_property
    def policy(self) -> Policy:
        """The policy in force; the defaults while its file cannot be followed."""
        try:
            return read_policy(self._settings.home, self.project)
        except PolicyError as error:
            log.warning("policy_unreadable", project=self.project, reason=str(error))
            return Policy()

    def replay(self) -> Replay | None:
        """The record for what-if; None before the first board."""
        return None if self.made_at is None else self._replays(self.project, self.made_at)

    def name(self, annotator: int) -> str:
        """What an annotator is called."""
        return self.board.name(annotator)

    def named(self, line: str) -> str:
        """A sentence with names in the place of numbers."""
        return re.sub(r"\bannotator (\d+)\b", lambda found: self.name(int(found[1])), line)

    def unclear(self, dispute: Dispute) -> list[DisagreementPattern]:
        """What a dispute is about and the guideline leaves open."""
        said = [(each.control, {" + ".join(each.a), " + ".join(each.b)}) for each in dispute.conflicts]
        return [
            split
            for split in self.board.splits
            if split.kind in {"guideline", "two views"} and (split.control, set(split.answers)) in said
        ]

    def in_label_studio(self, task: int | None = None) -> str:
        """The address of a task, or of the project, in Label Studio, as a browser reaches it."""
        base = self._settings.label_studio_public_url or self._settings.label_studio_url
        return f"{base}/projects/{self.project}/data{f'?task={task}' if task is not None else '/'}"

    @cached_property
    def review_stream(self) -> str:
        """The address of the review project's label stream; empty where there is none."""
        review = ReviewStore(self._engine).review_of(self.project) if self.policy.review_project else None
        base = self._settings.label_studio_public_url or self._settings.label_studio_url
        return "" if review is None else f"{base}/projects/{review}/data?labeling=1"

    def kinds(self) -> list[tuple[str, str, int]]:
        """(type, name, tasks) of the conflicts in open disputes, the most frequent first."""
        # Tasks without a dispute hold two blanks; whatever sorts behind them is of the index alone, and of few rows.
        query = sa.select(FACTS.c.kinds, sa.func.count()).where(FACTS.c.project == self.project, FACTS.c.kinds > "  ")
        totals: Counter[str] = Counter()
        with reading(self._engine) as connection:
            for kinds, number in connection.execute(query.group_by(FACTS.c.kinds)):
                totals.update(dict.fromkeys(kinds.split(), number))
        found = [(kind, name, totals[kind]) for kind, name in KINDS.items()]
        return sorted((each for each in found if each[2]), key=lambda each: -each[2])

    def people(self, order: str) -> list[AnnotatorProfile]:
        """Everybody, ordered by a column of the table; without one by name."""
        value = ORDERS.get(order.removeprefix("-"))
        if value is None:
            return sorted(self.board.people, key=lambda each: self.name(each.annotator).casefold())
        known = [each for each in self.board.people if value(each) is not None]
        unknown = [each for each in self.board.people if value(each) is None]
        return [*sorted(known, key=value, reverse=order.startswith("-")), *unknown]

    def floor(self) -> float:
        """Where the scale of reliability begins: below the lowest interval, in steps of ten percent."""
        lows = [
            each.low
            for person in self.board.people
            for each in (
                person.against_truth,
                *(rated.accuracy for rated in person.reliability.labels.values()),
                *(rated.accuracy for rated in person.reliability.choices.values()),
                *((person.reliability.regions.recall, person.reliability.regions.precision)
                  if person.reliability.regions else ()),
            )
            if each.low is not None
        ]  # fmt: skip
        return max(0.0, int(min(lows, default=0.5) * 10 - 0.5) / 10)


def _accuracy(each: AnnotatorProfile) -> float | None:
    rated = {**each.reliability.labels, **each.reliability.choices}
    known = [found.accuracy.value for found in rated.values() if found.accuracy.value is not None]
    return min(known, default=None)


def _of_regions(name: str) -> Callable[[AnnotatorProfile], Any]:
    def value(each: AnnotatorProfile) -> float | None:
        found = getattr(each.reliability.regions, name, None) if each.reliability.regions else None
        return found.value if isinstance(found, Estimate) else found

    return value


# A column of the annotator table -> what it is ordered by.
ORDERS: Mapping[str, Callable[[AnnotatorProfile], Any]] = {
    "tasks": lambda each: each.reliability.tasks,
    "accuracy": _accuracy,
    "recall": _of_regions("recall"),
    "precision": _of_regions("precision"),
    "truth": lambda each: each.against_truth.value,
    "strictness": _of_regions("strictness"),
    "speed": lambda each: each.speed.seconds if each.speed else None,
    "concerns": lambda each: len(each.concerns),
}


class Projects:
    """The connected projects."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._replays: OrderedDict[tuple[int, float], Replay | None] = OrderedDict()
        self._lock = Lock()

    def all(self) -> list[Listed]:
        """Every connected project with its figures."""
        boards = BoardStore(self._engine)
        found = []
        for each in ProjectStore(self._engine).all():
            counts, shown = Queue(self._engine, each.project).counts(), boards.board(each.project)
            title = shown.board.title if shown and shown.board.title else f"Project {each.project}"
            agreement = shown.board.agreement if shown else Estimate.lacking(0)
            tasks = sum(counts.get(outcome, 0) for outcome in OUTCOMES)
            found.append(Listed(each.project, title, tasks, counts.get("disputed", 0), counts["review"], agreement))
        return found

    def view(self, project: int) -> View:
        """One project.

        Raises:
            NotFound: It is not connected.
        """
        if ProjectStore(self._engine).get(project) is None:
            raise NotFound(f"Project {project} is not connected. Run: labelloop connect {project}")
        return View(project, self._settings, self._engine, self._replay)

    def _replay(self, project: int, made_at: float) -> Replay | None:
        """The record, kept in memory: it is the same until the board is counted anew."""
        key = project, made_at
        with self._lock:
            if key in self._replays:
                self._replays.move_to_end(key)
                return self._replays[key]
        found = BoardStore(self._engine).replay(project)
        with self._lock:
            self._replays[key] = found
            while len(self._replays) > _KEPT_REPLAYS:
                self._replays.popitem(last=False)
        return found
