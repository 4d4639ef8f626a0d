"""Queue of disputes and of tasks that are not judged: filters, order, paging."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import begin_read
from qc_webhooks.decision.dispute_drawing import GROUND_TRUTH, ConflictText, DisputeDrawing
from qc_webhooks.store.tables import ACTIONS, FACTS, SEND_BACKS, TASKS
from qc_webhooks.verdict.note import CONFLICT_NAMES
from qc_webhooks.verdict.task_facts import TaskFacts

PAGE_SIZE = 8

# The written qc_* keys; labeled, because `keys` is a method of a column collection.
_WRITTEN_KEYS = TASKS.c["keys"].label("written")

# Query value -> (display name, column, whether descending). Ties are ordered by task.
SORTS: Mapping[str, tuple[str, sa.Column[Any], bool]] = {
    "agreement": ("lowest agreement", TASKS.c.agreement, False),
    "newest": ("newest", TASKS.c.decided_at, True),
    "oldest": ("oldest", TASKS.c.decided_at, False),
    "closest": ("highest agreement", TASKS.c.agreement, True),
}

_DISPUTED = TASKS.c.outcome == "disputed"
_FOR_REVIEW = (TASKS.c.outcome.in_(("disputed", "not_judged")), TASKS.c.review)

# Tasks with a doubt about their ground truth.
_IN_DOUBT = sa.exists().where(
    FACTS.c.project == TASKS.c.project, FACTS.c.task == TASKS.c.task, FACTS.c.kinds.contains(f" {GROUND_TRUTH} ")
)


def _of_send_backs(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Tasks with a send-back that is not accepted."""
    open_ = SEND_BACKS.c.project == TASKS.c.project, SEND_BACKS.c.accepted_at.is_(None), condition
    return sa.exists().where(SEND_BACKS.c.task == TASKS.c.task, *open_)


# Query value -> (display name, conditions).
STATES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "all": ("all disputes", (_DISPUTED,)),
    "review": ("for a reviewer", _FOR_REVIEW),
    "asked": ("one more annotator", (_DISPUTED, sa.not_(TASKS.c.review))),
    "not_judged": ("not judged", (TASKS.c.outcome == "not_judged",)),
    "truth": ("ground truth in doubt", (_IN_DOUBT,)),
    "sent_back": ("sent back", (_of_send_backs(SEND_BACKS.c.redone_at.is_(None)),)),
    "redone": ("redone, to accept", (_of_send_backs(SEND_BACKS.c.redone_at.is_not(None)),)),
}
# Counted on the pages next to the verdicts.
_COUNTED = ("truth", "sent_back", "redone")


@dataclass(frozen=True)
class Search:
    """Filter, order and page. Invalid query values fall back to the defaults.

    Attributes:
        state: A key of STATES.
        kind: Type of conflict; empty for any.
        person: Annotator of the task; None for any.
        sort: A key of SORTS.
        page: From 1.
    """

    state: str = "all"
    kind: str = ""
    person: int | None = None
    sort: str = "agreement"
    page: int = 1

    @classmethod
    def of(cls, values: Mapping[str, str]) -> "Search":
        """Parse the query of a URL."""
        state, kind, sort = values.get("state", ""), values.get("kind", ""), values.get("sort", "")
        person, page = values.get("person", ""), values.get("page", "")
        return cls(
            state if state in STATES else "all",
            kind if kind in CONFLICT_NAMES else "",
            int(person) if person.lstrip("-").isdecimal() and len(person) < 12 else None,
            sort if sort in SORTS else "agreement",
            max(1, int(page)) if page.isdecimal() and len(page) < 8 else 1,
        )

    def as_query(self, **changes: Any) -> dict[str, Any]:
        """Query parameters that differ from the defaults, with changes applied."""
        values = {"state": self.state, "kind": self.kind, "person": self.person, "sort": self.sort, "page": self.page}
        defaults = Search()
        return {
            name: value for name, value in (values | changes).items() if value not in (None, getattr(defaults, name))
        }


@dataclass(frozen=True)
class Dispute:
    """A task of the queue.

    Attributes:
        task: The task's id.
        agreement: Mean agreement, None where nothing was compared.
        annotators: Number of annotators.
        review: Whether it waits for a reviewer.
        decided_at: Time of the verdict, seconds since 1970.
        note: Note as written to the task.
        facts: Facts; None for a task judged before facts were stored.
        drawing: Drawing; None without one.
        outcome: The verdict.
        sent_back: ``sent back``, ``redone`` or ``accepted`` as written to the task; empty if it was not sent back.
    """

    task: int
    agreement: float | None
    annotators: int
    review: bool
    decided_at: float
    note: str
    facts: TaskFacts | None = None
    drawing: DisputeDrawing | None = None
    outcome: str = "disputed"
    sent_back: str = ""

    @property
    def conflicts(self) -> tuple[ConflictText, ...]:
        """Conflicts with their texts."""
        return self.drawing.conflicts if self.drawing else ()

    @property
    def truth(self) -> int | None:
        """Id of a ground truth that all annotators contradict; None without one."""
        doubts = [conflict.a for conflict in self.conflicts if conflict.type == GROUND_TRUTH]
        return next((int(sides[1]) for sides in doubts if sides[0] == "crowd"), None)

    @property
    def kinds(self) -> list[str]:
        """Types of the conflicts."""
        return sorted({conflict.type for conflict in self.conflicts})


@dataclass(frozen=True)
class TaskWrite:
    """A logged write to a task: time (seconds since 1970), route, reason and state."""

    at: float
    route: str
    reason: str
    state: str


class DisputeQueue:
    """Disputes in the database.

    Args:
        engine: The migrated database.
        project: The project's id.
    """

    def __init__(self, engine: sa.Engine, project: int) -> None:
        self._engine = engine
        self._project = project

    def count(self, search: Search) -> int:
        """Number of matching tasks."""
        query = sa.select(sa.func.count()).select_from(TASKS).where(*self._where(search))
        with begin_read(self._engine) as connection:
            return int(connection.scalar(query) or 0)

    def page(self, search: Search) -> list[Dispute]:
        """One page of matching tasks."""
        # Select the ids first, from an index alone: rows with drawings are wide, and only one page of them is needed.
        ids = sa.select(TASKS.c.task).where(*self._where(search)).order_by(*_order(search))
        ids = ids.offset((search.page - 1) * PAGE_SIZE).limit(PAGE_SIZE)
        with begin_read(self._engine) as connection:
            tasks = [int(task) for task in connection.scalars(ids)]
        return self._read(tasks)

    def get(self, task: int) -> Dispute | None:
        """A task, disputed or not; None where it is not judged."""
        return next(iter(self._read([task])), None)

    def neighbours(self, search: Search, dispute: Dispute) -> tuple[int | None, int | None]:
        """Tasks before and after a dispute in the order of the search."""
        column, down = _sorted_by(search)
        value = getattr(dispute, SORTS[search.sort][1].name)
        value = -1.0 if value is None else value

        def nearest(*, ascending: bool) -> int | None:
            after_value = (
                (column > value, TASKS.c.task > dispute.task)
                if ascending
                else (column < value, TASKS.c.task < dispute.task)
            )
            direction = sa.asc if ascending else sa.desc
            query = sa.select(TASKS.c.task).where(*self._where(search))
            query = query.where(sa.or_(after_value[0], sa.and_(column == value, after_value[1])))
            with begin_read(self._engine) as connection:
                return connection.scalar(query.order_by(direction(column), direction(TASKS.c.task)).limit(1))

        return nearest(ascending=down), nearest(ascending=not down)

    def iter_disputes(self, search: Search) -> Iterator[dict[str, Any]]:
        """Rows of all matching tasks, for a download."""
        columns = (TASKS.c.task, TASKS.c.outcome, TASKS.c.agreement, TASKS.c.annotators, TASKS.c.review,
                   TASKS.c.decided_at, _WRITTEN_KEYS, FACTS.c.kinds, FACTS.c.people)  # fmt: skip
        query = sa.select(*columns).select_from(_joined()).where(*self._where(search)).order_by(*_order(search))
        with begin_read(self._engine) as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield {
                    "task": row.task, "verdict": row.outcome, "agreement": row.agreement, "annotators": row.annotators,
                    "waits_for_reviewer": bool(row.review), "judged_at": row.decided_at,
                    "conflicts": (row.kinds or "").split(), "people": [int(id_) for id_ in (row.people or "").split()],
                    "note": _note(row.written),
                }  # fmt: skip

    def iter_tasks(self) -> Iterator[dict[str, Any]]:
        """Rows of all tasks of the project, for a download."""
        columns = (TASKS.c.task, TASKS.c.outcome, TASKS.c.agreement, TASKS.c.annotators, TASKS.c.review,
                   TASKS.c.decided_at, FACTS.c.kinds, FACTS.c.people, FACTS.c.at)  # fmt: skip
        query = sa.select(*columns).select_from(_joined()).where(TASKS.c.project == self._project)
        with begin_read(self._engine) as connection:
            for row in connection.execution_options(yield_per=1000).execute(query.order_by(TASKS.c.task)):
                yield {
                    "task": row.task, "verdict": row.outcome, "agreement": row.agreement, "annotators": row.annotators,
                    "waits_for_reviewer": bool(row.review), "judged_at": row.decided_at, "annotated_at": row.at or None,
                    "conflicts": (row.kinds or "").split(), "people": [int(id_) for id_ in (row.people or "").split()],
                }  # fmt: skip

    def writes(self, task: int) -> list[TaskWrite]:
        """Newest 50 writes to a task, newest first."""
        query = sa.select(ACTIONS).where(ACTIONS.c.project == self._project, ACTIONS.c.task == task)
        with begin_read(self._engine) as connection:
            rows = connection.execute(query.order_by(ACTIONS.c.id.desc()).limit(50)).all()
        return [TaskWrite(row.created_at, row.route, row.reason, row.state) for row in rows]

    def counts(self) -> dict[str, int]:
        """Number of tasks by verdict; ``review``: disputed or not judged, and waiting for a reviewer."""
        of_project = TASKS.c.project == self._project
        with begin_read(self._engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.outcome, sa.func.count()).where(of_project).group_by(TASKS.c.outcome)
            ).all()
            review = connection.scalar(sa.select(sa.func.count()).where(of_project, *_FOR_REVIEW))
            count = sa.select(sa.func.count()).select_from(TASKS)
            others = {state: connection.scalar(count.where(of_project, *STATES[state][1])) for state in _COUNTED}
        counts = {str(outcome): int(number) for outcome, number in rows} | {"review": int(review or 0)}
        return counts | {state: int(number or 0) for state, number in others.items()}

    def _read(self, tasks: list[int]) -> list[Dispute]:
        query = sa.select(TASKS, _WRITTEN_KEYS, FACTS.c.facts, FACTS.c.drawing).select_from(_joined())
        with begin_read(self._engine) as connection:
            rows = connection.execute(query.where(TASKS.c.project == self._project, TASKS.c.task.in_(tasks))).all()
        disputes = {
            row.task: Dispute(
                row.task, row.agreement, row.annotators, bool(row.review), row.decided_at, _note(row.written),
                None if row.facts is None else msgspec.json.decode(row.facts, type=TaskFacts),
                None if row.drawing is None else msgspec.json.decode(row.drawing, type=DisputeDrawing),
                row.outcome,
                _written(row.written, "qc_sent_back"),
            )
            for row in rows
        }  # fmt: skip
        return [disputes[task] for task in tasks if task in disputes]

    def _where(self, search: Search) -> list[sa.ColumnElement[bool]]:
        conditions = [TASKS.c.project == self._project, *STATES[search.state][1]]
        facts_conditions = [FACTS.c.project == self._project]
        if STATES[search.state][1][0] is _DISPUTED:
            # Tasks without a dispute hold two blanks; the rows sorted after them are found in the index.
            facts_conditions.append(FACTS.c.kinds > "  ")
        unfiltered = len(facts_conditions)
        if search.kind:
            facts_conditions.append(FACTS.c.kinds.contains(f" {search.kind} ", autoescape=True))
        if search.person is not None:
            facts_conditions.append(FACTS.c.people.contains(f" {search.person} ", autoescape=True))
        if len(facts_conditions) > unfiltered:
            conditions.append(TASKS.c.task.in_(sa.select(FACTS.c.task).where(*facts_conditions)))
        return conditions


def _order(search: Search) -> tuple[sa.ColumnElement[Any], ...]:
    column, down = _sorted_by(search)
    return (column.desc(), TASKS.c.task.desc()) if down else (column.asc(), TASKS.c.task.asc())


def _sorted_by(search: Search) -> tuple[sa.ColumnElement[Any], bool]:
    """Column and whether descending; tasks that are not judged have no agreement and sort as the lowest."""
    _, column, down = SORTS[search.sort]
    return (column if STATES[search.state][1][0] is _DISPUTED else sa.func.coalesce(column, -1.0)), down


def _joined() -> sa.FromClause:
    same = sa.and_(FACTS.c.project == TASKS.c.project, FACTS.c.task == TASKS.c.task)
    return TASKS.outerjoin(FACTS, same)


def _note(keys: str | None) -> str:
    return _written(keys, "qc_note")


def _written(keys: str | None, name: str) -> str:
    values = json.loads(keys) if keys else {}
    return str(values.get(name) or "") if isinstance(values, dict) else ""
