"""Data of a project for its pages: summary, dispute queue, policy in force."""

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

from labelloop.service.db.engine import begin_read
from labelloop.service.settings import Settings
from qc_webhooks.annotators import OPEN_KINDS, AnnotatorProfile, Diagnosis
from qc_webhooks.dashboard.dispute_queue import Dispute, DisputeQueue
from qc_webhooks.decision.dispute_drawing import ConflictText
from qc_webhooks.decision.send_backs import SendBack
from qc_webhooks.errors import PolicyError
from qc_webhooks.pipeline.review_project import ReviewStore
from qc_webhooks.policy import Policy
from qc_webhooks.report.project_summary import ProjectSummary, Savings
from qc_webhooks.report.replay import Replay
from qc_webhooks.report.tuning import Tuning
from qc_webhooks.report.tuning_store import load_tuning
from qc_webhooks.schedulers.project_summary import SummaryStore
from qc_webhooks.statistics import Estimate
from qc_webhooks.store.previews import DefaultsPreview, PreviewStore
from qc_webhooks.store.projects import NEWEST_DEFAULTS, ProjectStore
from qc_webhooks.store.send_backs import SendBackStore
from qc_webhooks.store.tables import FACTS
from qc_webhooks.verdict.note import CONFLICT_NAMES
from qc_webhooks.verdict.verdict import OUTCOMES

_CACHED_REPLAYS = 4
_EMPTY_SUMMARY = ProjectSummary(
    "", {}, (), False, Estimate.insufficient(0), Savings(0, 0, {}, None), 0, (), (), (), (), {}
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ProjectListItem:
    """Row of the list of projects."""

    project: int
    title: str
    tasks: int
    disputed: int
    review: int
    agreement: Estimate


class ProjectView:
    """Data of one project, for one request.

    Args:
        project: Its id.
        settings: Locations of its policy and of Label Studio.
        engine: The migrated database.
        replays: Returns the replay arrays of a project for the time its summary was made.
    """

    def __init__(
        self, project: int, settings: Settings, engine: sa.Engine, replays: "Callable[[int, float], Replay | None]"
    ) -> None:
        self.project = project
        self._settings, self._engine, self._replays = settings, engine, replays
        self._stored = SummaryStore(engine).load(project)
        self.summary = self._stored.summary if self._stored else _EMPTY_SUMMARY
        self.made_at = self._stored.made_at if self._stored else None
        self.counted = self._stored.tasks if self._stored else 0
        self.queue = DisputeQueue(engine, project)

    @property
    def title(self) -> str:
        """Title of the project, or its id."""
        return self.summary.title or f"Project {self.project}"

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Current number of tasks by verdict."""
        return self.queue.counts()

    @property
    def judged(self) -> int:
        """Current number of judged tasks."""
        return sum(self.counts.get(outcome, 0) for outcome in OUTCOMES)

    @cached_property
    def policy(self) -> Policy:
        """Policy in force; the defaults while its file is invalid."""
        try:
            return ProjectStore(self._engine).policy(self._settings.home, self.project)
        except PolicyError as error:
            log.warning("policy_unreadable", project=self.project, reason=str(error))
            return Policy()

    def send_backs(self, task: int) -> tuple[SendBack, ...]:
        """Send-backs of a task."""
        return SendBackStore(self._engine).of_task(self.project, task)

    @cached_property
    def new_default(self) -> DefaultsPreview | None:
        """What the newest defaults would change; None where the project uses them or its policy file decides."""
        connected = ProjectStore(self._engine).get(self.project)
        if connected is None or connected.defaults >= NEWEST_DEFAULTS or self.policy.conflicts.by_objects:
            return None
        return PreviewStore(self._engine).summary(self.project)

    def replay(self) -> Replay | None:
        """Arrays for what-if; None before the first summary."""
        return None if self.made_at is None else self._replays(self.project, self.made_at)

    @cached_property
    def tuning(self) -> Tuning | None:
        """The last tuning of the project; None without one."""
        return load_tuning(self._settings.home, self.project)

    def name(self, annotator: int) -> str:
        """Display name of an annotator."""
        return self.summary.name(annotator)

    def with_names(self, line: str) -> str:
        """Replace "annotator 7" by the name in a sentence, also at its beginning."""
        return re.sub(r"\b[Aa]nnotator (\d+)\b", lambda match: self.name(int(match[1])), line)

    def unclear_patterns(self, dispute: Dispute) -> list[Diagnosis]:
        """Diagnoses of an unclear guideline that a dispute's conflicts may be cases of."""
        return [
            diagnosis
            for diagnosis in self.summary.splits
            if diagnosis.kind in OPEN_KINDS and any(_covers(diagnosis, conflict) for conflict in dispute.conflicts)
        ]

    def explanations(self, dispute: Dispute, conflict: ConflictText) -> list[str]:
        """Why the annotators of a conflict differ, one sentence each, with their names."""
        others = [item.annotator for item in dispute.facts.blind] if dispute.facts else []
        found = (
            diagnosis.explanation(conflict.annotators, others)
            for diagnosis in self.summary.splits
            if _covers(diagnosis, conflict)
        )
        lines = dict.fromkeys(f"{line[0].upper()}{line[1:]}" for line in found if line)
        return [self.with_names(line) for line in lines]

    def label_studio_url(self, task: int | None = None) -> str:
        """URL of a task or of the project in Label Studio, for a browser."""
        base = self._settings.label_studio_public_url or self._settings.label_studio_url
        return f"{base}/projects/{self.project}/data{f'?task={task}' if task is not None else '/'}"

    @cached_property
    def review_stream(self) -> str:
        """URL of the review project's label stream; empty without one."""
        review = ReviewStore(self._engine).review_of(self.project) if self.policy.review_project else None
        base = self._settings.label_studio_public_url or self._settings.label_studio_url
        return "" if review is None else f"{base}/projects/{review}/data?labeling=1"

    def conflict_counts(self) -> list[tuple[str, str, int]]:
        """(type, name, number of tasks) of the conflicts in open disputes, the most frequent first."""
        # Tasks without a dispute hold two blanks; the rows sorted after them are few and come from the index alone.
        query = sa.select(FACTS.c.kinds, sa.func.count()).where(FACTS.c.project == self.project, FACTS.c.kinds > "  ")
        totals: Counter[str] = Counter()
        with begin_read(self._engine) as connection:
            for kinds, number in connection.execute(query.group_by(FACTS.c.kinds)):
                totals.update(dict.fromkeys(kinds.split(), number))
        counts = [(kind, name, totals[kind]) for kind, name in CONFLICT_NAMES.items()]
        return sorted((row for row in counts if row[2]), key=lambda row: -row[2])

    def people(self, order: str) -> list[AnnotatorProfile]:
        """Profiles of all annotators, ordered by a column of the table (``-`` for descending); by name otherwise."""
        sort_key = SORT_KEYS.get(order.removeprefix("-"))
        if sort_key is None:
            return sorted(self.summary.people, key=lambda profile: self.name(profile.annotator).casefold())
        rated = [profile for profile in self.summary.people if sort_key(profile) is not None]
        unrated = [profile for profile in self.summary.people if sort_key(profile) is None]
        return [*sorted(rated, key=sort_key, reverse=order.startswith("-")), *unrated]

    def scale_floor(self) -> float:
        """Start of the scale of reliability, 0 to 1: below the lowest interval, in steps of 0.1."""
        lows = [
            estimate.low
            for profile in self.summary.people
            for estimate in (
                profile.against_truth,
                *(rated.accuracy for rated in profile.reliability.labels.values()),
                *(rated.accuracy for rated in profile.reliability.choices.values()),
                *((profile.reliability.regions.recall, profile.reliability.regions.precision)
                  if profile.reliability.regions else ()),
            )
            if estimate.low is not None
        ]  # fmt: skip
        return max(0.0, int(min(lows, default=0.5) * 10 - 0.5) / 10)


def _accuracy(profile: AnnotatorProfile) -> float | None:
    reliabilities = {**profile.reliability.labels, **profile.reliability.choices}
    values = [rated.accuracy.value for rated in reliabilities.values() if rated.accuracy.value is not None]
    return min(values, default=None)


def _region_rate(name: str) -> Callable[[AnnotatorProfile], Any]:
    def value(profile: AnnotatorProfile) -> float | None:
        rate = getattr(profile.reliability.regions, name, None) if profile.reliability.regions else None
        return rate.value if isinstance(rate, Estimate) else rate

    return value


# Column of the annotator table -> its sort key.
SORT_KEYS: Mapping[str, Callable[[AnnotatorProfile], Any]] = {
    "tasks": lambda profile: profile.reliability.tasks,
    "accuracy": _accuracy,
    "recall": _region_rate("recall"),
    "precision": _region_rate("precision"),
    "truth": lambda profile: profile.against_truth.value,
    "strictness": _region_rate("strictness"),
    "speed": lambda profile: profile.speed.seconds if profile.speed else None,
    "concerns": lambda profile: len(profile.concerns),
}


class ConnectedProjects:
    """Access to the connected projects; caches replay arrays."""

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings, self._engine = settings, engine
        self._replays: OrderedDict[tuple[int, float], Replay | None] = OrderedDict()
        self._lock = Lock()

    def all(self) -> list[ProjectListItem]:
        """List the connected projects with their counts."""
        summaries = SummaryStore(self._engine)
        items = []
        for connected in ProjectStore(self._engine).all():
            counts, stored = DisputeQueue(self._engine, connected.project).counts(), summaries.load(connected.project)
            title = stored.summary.title if stored and stored.summary.title else f"Project {connected.project}"
            agreement = stored.summary.agreement if stored else Estimate.insufficient(0)
            tasks = sum(counts.get(outcome, 0) for outcome in OUTCOMES)
            items.append(
                ProjectListItem(connected.project, title, tasks, counts.get("disputed", 0), counts["review"], agreement)
            )
        return items

    def view(self, project: int) -> ProjectView:
        """Data of one project.

        Raises:
            NotFound: The project is not connected.
        """
        if ProjectStore(self._engine).get(project) is None:
            raise NotFound(f"Project {project} is not connected. Run: labelloop connect {project}")
        return ProjectView(project, self._settings, self._engine, self._replay)

    def _replay(self, project: int, made_at: float) -> Replay | None:
        """Arrays for what-if, cached until the next summary."""
        key = project, made_at
        with self._lock:
            if key in self._replays:
                self._replays.move_to_end(key)
                return self._replays[key]
        replay = SummaryStore(self._engine).replay(project)
        with self._lock:
            self._replays[key] = replay
            while len(self._replays) > _CACHED_REPLAYS:
                self._replays.popitem(last=False)
        return replay


def _covers(diagnosis: Diagnosis, conflict: ConflictText) -> bool:
    return diagnosis.covers(conflict.type, conflict.control, conflict.a, conflict.b, area=conflict.area)
