"""One task, checked: read from Label Studio, judged by the policy, routed, remembered."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from labelloop.labeling.config import LabelConfig
from labelloop.labeling.task import Task, read_task
from labelloop.service.studio import Studio
from qc_webhooks.agreement import Answers, read_answers
from qc_webhooks.errors import WriteLost
from qc_webhooks.memory import MemoryStore, Write
from qc_webhooks.policy import Policy, read_policy
from qc_webhooks.routing import KEYS, Action, Memory, Situation, needs_review, plan
from qc_webhooks.verdict import Verdict, judge

# A label config changes seldom; asking for it at every task would double our requests.
CONFIG_KEPT_S = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Checked:
    """What came of a check.

    Attributes:
        verdict: None: the task is gone.
        actions: What was written to the task; empty: it was as it should be.
    """

    verdict: Verdict | None
    actions: tuple[Action, ...] = ()


class Checker:
    """Checks tasks of one Label Studio. Thread-safe; the inbox gives one task to one worker at a time.

    Args:
        studio: Label Studio.
        memory: What was decided and written before.
        home: The folder that the policies are in (the setting ``home``).
    """

    def __init__(self, studio: Studio, memory: MemoryStore, home: Path) -> None:
        self._studio = studio
        self._memory = memory
        self._home = home
        self._configs: dict[int, tuple[float, LabelConfig]] = {}

    def check(self, project: int, task: int) -> Checked:
        """Judges a task as it is in Label Studio now and makes it say so. Doing it twice writes once.

        Raises:
            StudioError: Label Studio cannot be asked, or refuses.
            MalformedTask, MalformedConfig: It answered something that is no task or no label config.
            PolicyError: The policy cannot be followed.
            WriteLost: Label Studio answered a write with other values than we wrote.
        """
        # First, so that little time passes between reading the task and writing to it.
        config = self._config(project)
        source = self._studio.task_json(project, task)
        if source is None:
            for write in self._memory.planned(project, task):
                self._memory.finish(write, done=False)
            self._memory.forget(project, task)
            return Checked(None)
        found = read_task(source)
        policy = read_policy(self._home, project)
        answers = read_answers(found, config=config)
        verdict = judge(answers, policy)
        memory = self._settle(project, task, found)
        situation = Situation(
            data=found.data,
            overlap=1 if found.overlap is None else found.overlap,
            is_labeled=bool(found.is_labeled),
            verdict=verdict,
            policy=policy,
            fingerprint=fingerprint(answers, policy),
            memory=memory,
        )
        actions = plan(situation)
        if actions:
            self._write(project, task, situation, actions)
        after = memory_after(situation, actions)
        annotations = {item.id: item.updated_at for item in found.annotations if item.id is not None}
        self._memory.remember(
            project, task, after, verdict, annotations, born=found.created_at, review=needs_review(situation)
        )
        log.info(
            "task_checked",
            project=project,
            task=task,
            outcome=verdict.outcome,
            agreement=verdict.agreement,
            annotators=verdict.annotators,
            routes=[action.route for action in actions],
        )
        return Checked(verdict, actions)

    def _config(self, project: int) -> LabelConfig:
        kept = self._configs.get(project)
        if kept is None or time.monotonic() - kept[0] > CONFIG_KEPT_S:
            kept = time.monotonic(), self._studio.label_config(project)
            self._configs[project] = kept
        return kept[1]

    def _settle(self, project: int, task: int, found: Task) -> Memory | None:
        """What we did before, completed by writes that a killed worker began: the server says whether they arrived."""
        memory = self._memory.recall(project, task, born=found.created_at)
        for write in self._memory.planned(project, task):
            arrived = _current(found.data, found.overlap, found.is_labeled, write.after) == write.after
            self._memory.finish(write, done=arrived)
            if arrived:
                memory = _recovered(memory, write)
        return memory

    def _write(self, project: int, task: int, situation: Situation, actions: Sequence[Action]) -> None:
        after = _merged(actions)
        write = self._memory.begin(
            project,
            task,
            route="+".join(action.route for action in actions),
            reason="; ".join(action.reason for action in actions),
            before=_current(situation.data, situation.overlap, situation.is_labeled, after),
            after=after,
        )
        # PATCH replaces the whole data: what was read, raw, goes back with our keys laid over it.
        data = {**situation.data, **after["keys"]} if "keys" in after else None
        answer = self._studio.update_task(
            task, data=data, overlap=after.get("overlap"), is_labeled=after.get("is_labeled")
        )
        kept = _current(answer.get("data") or {}, answer.get("overlap"), answer.get("is_labeled"), after)
        if kept != after:
            raise WriteLost(project, task, after, kept)
        self._memory.finish(write, done=True)


def fingerprint(answers: Sequence[Answers], policy: Policy) -> str:
    """What a verdict is drawn from, as a hash: the same fingerprint gives the same verdict."""
    versions = sorted((item.annotation, item.annotator, item.updated_at, item.ground_truth) for item in answers)
    return hashlib.sha256(msgspec.json.encode([versions, asdict(policy)])).hexdigest()


def memory_after(situation: Situation, actions: Sequence[Action]) -> Memory:
    """What is to be remembered once the actions are carried out."""
    before = situation.memory or Memory("")
    keys, asked, at, found = before.keys, before.asked_overlap, before.asked_at, before.found_overlap
    for action in actions:
        if action.keys:
            keys = action.keys
        if action.route == "one_more_annotator":
            asked, at = action.overlap, situation.verdict.annotators
            found = situation.overlap if found is None else found
        if action.route == "withdraw":
            asked = at = found = None
    return Memory(situation.fingerprint, keys, asked, at, found)


def _merged(actions: Sequence[Action]) -> dict[str, Any]:
    after: dict[str, Any] = {}
    for action in actions:
        if action.keys:
            after["keys"] = {**after.get("keys", {}), **action.keys}
        if action.overlap is not None:
            after |= {"overlap": action.overlap, "is_labeled": action.is_labeled}
    return after


def _current(
    data: Mapping[str, Any], overlap: int | None, is_labeled: bool | None, like: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that ``like`` has, as they are."""
    values = {
        "keys": {key: data[key] for key in KEYS if key in data},
        "overlap": overlap,
        "is_labeled": is_labeled,
    }
    return {name: values[name] for name in like}


def _recovered(memory: Memory | None, write: Write) -> Memory:
    """Memory with a write that arrived although nobody was left to remember it; it counts as news."""
    before = memory or Memory("")
    keys = write.after.get("keys", before.keys)
    asked, found = before.asked_overlap, before.found_overlap
    if "overlap" in write.after:
        raised = write.after["overlap"] > write.before["overlap"] or not write.after["is_labeled"]
        asked = write.after["overlap"] if raised else None
        found = (write.before["overlap"] if found is None else found) if raised else None
    return Memory("", keys, asked, None, found)
