"""Owns a run of learning: from events of a project to a candidate, judged, and served where it passes."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from labelloop.labeling.config import LabelConfig
from labelloop.service.inbox import Event
from labelloop.service.media import MediaError
from labelloop.service.studio import NotFound
from ml_backend import activation
from ml_backend.acquisition import photo_vector
from ml_backend.backbone import Backbone
from ml_backend.connect import same_address
from ml_backend.errors import ModelError, OtherModel
from ml_backend.examples import Example
from ml_backend.learn import Learned, learn
from ml_backend.learning.bases import Served
from ml_backend.learning.events import LEARN, Asked, now_hint, queue_hint
from ml_backend.learning.exams import HEADS, known_classes, labels_of
from ml_backend.learning.gate import Exam, Verdict, judge_by_folds, judge_held_out, unjudged
from ml_backend.learning.kit import Kit
from ml_backend.learning.lessons import fingerprint
from ml_backend.learning.looks import photo_key
from ml_backend.learning.policy import LearningPolicy, read_learning_policy
from ml_backend.learning.publish import make_room, store_candidate
from ml_backend.learning.runs import Metrics, Run, VerdictName
from ml_backend.learning.teaching import Lesson
from ml_backend.pointer import activate_in

MOST_WAIT_S = 10.0
"""A burst that never ends is answered after so long."""

BURST, IN_BURST = 3, 4
"""From so many submits at once it is waited so many times longer for the next."""

MOST_PHOTOS = 300
"""Labelled photos that a fit is made from; of more, a sample."""

FEW_BOXES = 100
"""Boxes of a class in the sample below which further photos that show it come along."""

JUDGED_PHOTOS = 40
"""Labelled photos on which the base is compared with a candidate that is judged by cross-validation."""

CANDIDATE = "candidate"
"""What a head is called until it is a version."""

log = structlog.get_logger(__name__)

Taught = Sequence[tuple[int, str, tuple[Lesson, ...]]]


@dataclass
class Stopwatch:
    """Seconds by phase; says to those who watch which phase it is."""

    tell: Callable[[str, int, int], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Measures a phase; the block may tell how far it is."""
        self.tell(name, 0, total)
        started = time.perf_counter()
        try:
            yield lambda done: self.tell(name, done, total)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)


@dataclass(frozen=True)
class _Material:
    """What a run works on."""

    project: int
    asked: Asked
    policy: LearningPolicy
    config: LabelConfig
    served: Served
    lessons: Taught
    held: Taught
    started_at: float
    watch: Stopwatch

    @property
    def classes(self) -> dict[str, int]:
        """Boxes of each class that is learned from."""
        drawn = Counter(label for _, _, photos in self.lessons for photo in photos for label in photo.labels)
        return dict(sorted(drawn.items()))

    @property
    def labelled(self) -> int:
        """Tasks with a box."""
        return sum(any(photo.labels for photo in photos) for _, _, photos in self.lessons)


class Learner:
    """Learns projects. One run of a project at a time: the inbox sees to that."""

    def __init__(self, kit: Kit) -> None:
        """Opens nothing yet."""
        self._kit = kit

    def learn(self, project: int, events: Sequence[Event]) -> Run | None:
        """Answers events of a project. They decide only when and where to look: Label Studio says what is.

        Returns:
            What came of it; None where there was nothing to fit.

        Raises:
            StudioError, StoreError: Label Studio or the store cannot be asked; trying again helps.
            LearningPolicyError: The project's learn.toml cannot be used.
        """
        policy = read_learning_policy(self._kit.settings.home, project)
        new = self._kit.lessons.connect(project)
        if not policy.learn:
            return None
        watch = Stopwatch(lambda name, done, total: self._kit.lessons.phase(project, name, done, total))
        try:
            asked = Asked.of(events)
            with watch.phase("wait"):
                asked = self._settled(project, asked, policy.debounce_s)
            material = self._material(project, asked, policy, watch, sweep=new or asked.sweep)
            return self._run(material) if material is not None else None
        except NotFound:
            log.info("project_gone", project=project)
            self._kit.lessons.disconnect(project)
            self._kit.looks.drop(project)
            return None
        finally:
            self._kit.lessons.phase(project, "")

    def _settled(self, project: int, asked: Asked, quiet_s: float) -> Asked:
        """Waits until nothing new came for a while, so that a burst of submits is one fit. What came is answered too.

        A single submit waits for no longer than it must; where several are there already more are to be expected. The
        events that came meanwhile stay in the inbox: they find nothing new and cost one request.
        """
        deadline = time.monotonic() + MOST_WAIT_S
        while not asked.now:
            events = self._kit.inbox.open_events(LEARN, str(project))
            asked = Asked.of(events) if events else asked
            pause_s = quiet_s * (1 if len(events) < BURST else IN_BURST)
            left = min(asked.newest_at + pause_s - time.time(), deadline - time.monotonic(), pause_s)
            if left <= 0:
                break
            time.sleep(max(left, 0.01))
        return asked

    def _material(
        self, project: int, asked: Asked, policy: LearningPolicy, watch: Stopwatch, *, sweep: bool
    ) -> _Material | None:
        """Reads Label Studio; None where that gives nothing to fit."""
        started_at = time.time()
        watch.seconds["wait"] = round(started_at - asked.asked_at, 3)
        with watch.phase("read"):
            config = self._kit.studio.label_config(project)
            if sweep:
                self._kit.reader.sweep(project, config=config, held_out=policy.held_out)
            tasks = (
                asked.tasks | self._kit.lessons.owners(project, asked.annotations) if asked.annotations else asked.tasks
            )
            self._kit.reader.read(project, tasks, config=config, held_out=policy.held_out)
            lessons, held = self._kit.lessons.taught(project, "teaches"), self._kit.lessons.taught(project, "held_out")
            served = self._kit.bases.served(project)
        material = _Material(project, asked, policy, config, served, lessons, held, started_at, watch)
        now = self._fingerprint(material)
        learner = self._kit.lessons.project(project)
        if learner is not None and learner.fingerprint == now and not asked.now:
            return None
        if material.labelled < policy.first:
            if served.learned and self._kit.lessons.withdrawn(project):
                self._withdraw(material)
            self._kit.lessons.note(project, fingerprint=now)
            return None
        return material

    def _run(self, of: _Material) -> Run:
        try:
            self._agree(of)
            return self._fitted(of)
        except ModelError as error:
            log.warning("not_learned", project=of.project, reason=str(error))
            return self._finish(of, "failed", reason=str(error))

    def _agree(self, of: _Material) -> None:
        """Sees that the backend serves what this worker takes for served: a fit on another base would replace it.

        Raises:
            OtherModel: It serves something else.
        """
        if of.served.pointer or of.served.learned:
            return  # named by the store, which both read
        rows = self._kit.studio.ml_backends(of.project)
        told = [str(row["model_version"]) for row in rows if same_address(row["url"], self._kit.settings.ml_url)]
        if told and told[0] not in {"", "None", of.served.version}:
            raise OtherModel(told[0], of.served.version)

    def _fitted(self, of: _Material) -> Run:
        backbone = self._kit.bases.backbone(of.served)
        examples, bad = self._examples(of, backbone)
        if not any(one.labels for one in examples):
            return self._finish(of, "failed", reason=f"none of the {bad} labelled photos could be had")
        with of.watch.phase("fit"):
            known = known_classes(of.config, backbone.names, of.classes)
            learned = learn(examples, levels=backbone.levels, known=known)
        with of.watch.phase("judge"):
            verdict = self._judge(of, backbone, learned)
        with of.watch.phase("publish"):
            version = self._publish(of, backbone, learned, verdict)
        if not version:  # somebody else activated something meanwhile: what it was judged against is not served
            self._ask_again(of)
            return self._finish(of, "refused", verdict=verdict, reason="another version was activated meanwhile")
        if verdict.passed:
            with of.watch.phase("follow"):
                self._follow(of.project, version)
        lost = f"; {bad} photos could not be had" if bad else ""
        name: VerdictName = "published" if verdict.passed else "refused"
        return self._finish(of, name, learned=learned, verdict=verdict, version=version, reason=verdict.reason + lost)

    def _examples(self, of: _Material, backbone: Backbone) -> tuple[list[Example], int]:
        """The labelled photos with what is seen on them, and how many could not be had."""
        lessons = sample([(task, photo) for task, _, photos in of.lessons for photo in photos])
        known = self._kit.looks.known(of.project, backbone.version)
        vectors: dict[int, Any] = {}
        examples, bad = [], 0
        with of.watch.phase("photos", len(lessons)) as tell:
            for place, (task, lesson) in enumerate(lessons):
                if place % 10 == 9:
                    tell(place)
                try:
                    examples.append(self._kit.album.example(backbone, lesson, task=task))
                except MediaError as error:
                    log.warning("photo_not_learned_from", project=of.project, task=task, reason=str(error))
                    bad += 1
                    continue
                if task not in known and task not in vectors:
                    vectors[task] = photo_key([lesson.url]), photo_vector(examples[-1].sight)
            self._kit.looks.keep(of.project, backbone.version, vectors)
        return examples, bad

    def _judge(self, of: _Material, backbone: Backbone, learned: Learned) -> Verdict:
        held = [(task, photo) for task, _, photos in of.held for photo in photos]
        self._kit.examiner.remember(CANDIDATE, learned.head)
        facts: dict[str, Any] = {"backbone": backbone, "base": of.served.base, "config": of.config}
        exam = self._kit.examiner.examine(CANDIDATE, held, **facts) if held else Exam([], [], [])
        if exam.enough:
            parent = self._kit.examiner.examine(of.served.version, held, **facts)
            earlier = [self._kit.examiner.examine(one, held, **facts) for one in self._earlier(of)]
            return judge_held_out(exam, parent, tolerance=of.policy.tolerance, earlier=earlier)
        scores = {str(key): float(score) for key, score in learned.judged.items()}
        mine = [(task, photo) for task, _, photos in of.lessons for photo in photos if photo.labels]
        if not scores:
            return unjudged(knows=self._served_knows(of, backbone))
        base = self._kit.examiner.examine(of.served.base, mine[-JUDGED_PHOTOS:], **facts)
        return judge_by_folds(
            float(learned.judged[learned.choice]), base, before=self._before(of), photos=len(mine),
            tolerance=of.policy.tolerance,
        )  # fmt: skip

    def _earlier(self, of: _Material) -> list[str]:
        """Versions before the served one that were learned on the same base and are still in memory.

        None where something that they may have learned from is withdrawn.
        """
        if self._kit.lessons.withdrawn(of.project):
            return []
        runs = self._kit.runs.last(of.project, HEADS)
        found = {run.version for run in runs if run.verdict == "published" and run.base == of.served.base}
        return sorted(one for one in found - {of.served.version} if self._kit.examiner.remembers(one))

    def _before(self, of: _Material) -> float | None:
        """The cross-validated score of what is served; None where it was learned from what is withdrawn now."""
        if not of.served.learned or self._kit.lessons.withdrawn(of.project):
            return None
        run = self._kit.runs.of_version(of.project, of.served.version)
        return run.ap50 if run is not None and run.judged_by == "cross-validation" else None

    def _served_knows(self, of: _Material, backbone: Backbone) -> list[str]:
        """Drawn classes that what is served can find."""
        if of.served.learned:
            return list(of.classes)
        return sorted(set(labels_of(of.config, backbone.names)) & set(of.classes))

    def _publish(self, of: _Material, backbone: Backbone, learned: Learned, verdict: Verdict) -> str:
        metrics: dict[str, Any] = {
            "verdict": "published" if verdict.passed else "refused",
            "reason": verdict.reason,
            "judged_by": verdict.judged_by,
        }
        if verdict.ap50 is not None:
            metrics["ap50"] = round(verdict.ap50, 4)
        manifest = store_candidate(
            self._kit.bases.registry, backbone, learned.head, served=of.served, project=of.project,
            tasks=len(of.lessons), metrics=metrics,
        )  # fmt: skip
        if not verdict.passed:
            return manifest.version
        if self._kit.bases.served(of.project).version != of.served.version:
            return ""
        activate_in(self._kit.bases.registry.store, manifest.version, str(of.project))
        self._kit.examiner.rename(CANDIDATE, manifest.version)
        self._kit.lessons.published(of.project, {task: seen for task, seen, _ in of.lessons})
        return manifest.version

    def _withdraw(self, of: _Material) -> Run:
        """What is served was learned from annotations that are gone, and too few are left: the base is served again."""
        activate_in(self._kit.bases.registry.store, of.served.pointer, str(of.project))
        self._kit.lessons.published(of.project, {})
        version = activation.served_version(self._kit.settings, self._kit.bases.registry.store, of.project)
        self._follow(of.project, version)
        return self._finish(
            of, "withdrawn", version=version,
            reason=f"{of.labelled} labelled tasks are left, fewer than {of.policy.first}: the base is served again",
        )  # fmt: skip

    def _follow(self, project: int, version: str) -> None:
        """Label Studio names the version; where that fails the poller does it later."""
        _, notes = activation.follow([(project, version)], self._kit.settings, self._kit.studio)
        for note in notes:
            log.warning("label_studio_not_told", project=project, reason=note)

    def _ask_again(self, of: _Material) -> None:
        self._kit.tell(now_hint(of.project, source="activation"))

    def _finish(
        self,
        of: _Material,
        name: VerdictName,
        *,
        reason: str,
        learned: Learned | None = None,
        verdict: Verdict | None = None,
        version: str = "",
    ) -> Run:
        run = Run(
            project=of.project, asked_at=of.asked.asked_at, started_at=of.started_at, finished_at=time.time(),
            source=of.asked.source, tasks=len(of.lessons), held_out=len(of.held), boxes=sum(of.classes.values()),
            classes=of.classes, base=of.served.base, parent=of.served.version, version=version, verdict=name,
            judged_by=verdict.judged_by if verdict else "", reason=reason, ap50=verdict.ap50 if verdict else None,
            parent_ap50=verdict.parent_ap50 if verdict else None, tolerance=of.policy.tolerance,
            metrics=_metrics(learned, verdict), seconds=dict(of.watch.seconds),
        )  # fmt: skip
        self._kit.runs.add(run)
        self._kit.lessons.note(of.project, fingerprint=self._fingerprint(of))
        log.info("learned", project=of.project, verdict=name, version=version, reason=reason, seconds=run.seconds)
        if name in {"published", "withdrawn"}:
            self._kit.tell(queue_hint(of.project, source=name))
            make_room(self._kit.bases.registry.store, self._kit.bases.registry, of.project, keep=of.policy.keep)
        return run

    def _fingerprint(self, of: _Material) -> str:
        return fingerprint(
            [(task, seen) for task, seen, _ in of.lessons], of.served.base, repr(sorted(of.config.controls))
        )


def sample(lessons: Sequence[tuple[int, Lesson]]) -> list[tuple[int, Lesson]]:
    """At most about `MOST_PHOTOS` of the lessons, always the same ones, and all that show a class that few of these do.

    A last layer learns little from more, and a submit would be answered in minutes.
    """
    if len(lessons) <= MOST_PHOTOS:
        return list(lessons)
    order = sorted(lessons, key=lambda one: zlib.crc32(f"{one[0]} {one[1].url}".encode()))
    kept, rest = order[:MOST_PHOTOS], order[MOST_PHOTOS:]
    drawn = Counter(label for _, photo in kept for label in photo.labels)
    for one in rest:
        if any(drawn[label] < FEW_BOXES for label in one[1].labels):
            kept.append(one)
            drawn.update(one[1].labels)
    return sorted(kept, key=lambda one: one[0])


def _metrics(learned: Learned | None, verdict: Verdict | None) -> Metrics:
    scores: Mapping[Any, float] = learned.judged if learned else {}
    return Metrics(
        by_class={name: round(score, 4) for name, score in (verdict.by_class if verdict else {}).items()},
        parent_by_class={name: round(score, 4) for name, score in (verdict.parent_by_class if verdict else {}).items()},
        photos=verdict.photos if verdict else 0,
        boxes=verdict.boxes if verdict else 0,
        cross_validation={_named(choice): round(float(score), 4) for choice, score in scores.items()},
        choice=_named(learned.choice) if learned else "",
    )


def _named(choice: Any) -> str:
    """A way to fit, in words."""
    return ", ".join(f"{name} {value}" for name, value in asdict(choice).items())
