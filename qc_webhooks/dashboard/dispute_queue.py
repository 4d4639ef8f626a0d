"""The queue of disputes and of what is not judged: which ones, in which order, one page at a time."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.service.db.engine import reading
from qc_webhooks.dashboard.formatting import KINDS
from qc_webhooks.decision.dispute_drawing import Drawing, Said
from qc_webhooks.store.tables import ACTIONS, FACTS, TASKS
from qc_webhooks.verdict.task_facts import Facts

PAGE = 8

# The qc_* keys as written; `keys` itself is a method of a collection of columns.
_WRITTEN = TASKS.c["keys"].label("written")

# What is typed in the address -> (what it is called, the column to order by, whether downwards). Equals come by task.
SORTS: Mapping[str, tuple[str, sa.Column[Any], bool]] = {
    "agreement": ("least agreement first", TASKS.c.agreement, False),
    "newest": ("newest first", TASKS.c.decided_at, True),
    "oldest": ("oldest first", TASKS.c.decided_at, False),
    "closest": ("most agreement first", TASKS.c.agreement, True),
}

_DISPUTED = TASKS.c.outcome == "disputed"
_FOR_REVIEW = (TASKS.c.outcome.in_(("disputed", "not_judged")), TASKS.c.review)

# What is typed in the address -> (what it is called, which tasks these are).
STATES: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "all": ("all disputes", (_DISPUTED,)),
    "review": ("waiting for a reviewer", _FOR_REVIEW),
    "asked": ("waiting for one more annotator", (_DISPUTED, sa.not_(TASKS.c.review))),
    "not_judged": ("not judged", (TASKS.c.outcome == "not_judged",)),
}


@dataclass(frozen=True)
class Search:
    """What is looked for. A value that means nothing is taken for the default.

    Attributes:
        state: A key of STATES.
        kind: A type of conflict; empty: any.
        person: An annotator of the task; None: anybody.
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
        """From the query of an address."""
        state, kind, sort = values.get("state", ""), values.get("kind", ""), values.get("sort", "")
        person, page = values.get("person", ""), values.get("page", "")
        return cls(
            state if state in STATES else "all",
            kind if kind in KINDS else "",
            int(person) if person.lstrip("-").isdecimal() and len(person) < 12 else None,
            sort if sort in SORTS else "agreement",
            max(1, int(page)) if page.isdecimal() and len(page) < 8 else 1,
        )

    def as_query(self, **changes: Any) -> dict[str, Any]:
        """The query of an address, with what is not the default, and changes laid over it."""
        values = {"state": self.state, "kind": self.kind, "person": self.person, "sort": self.sort, "page": self.page}
        plain = Search()
        return {name: value for name, value in (values | changes).items() if value not in (None, getattr(plain, name))}


@dataclass(frozen=True)
class Dispute:
    """One task of the queue.

    Attributes:
        task: The task's id.
        agreement: Mean agreement, None where nothing was compared.
        annotators: How many submitted.
        review: Whether it waits for a reviewer.
        decided_at: When it was judged, seconds since 1970.
        note: What is disputed, as written on the task.
        facts: None for a task that was judged before facts were kept.
        drawing: The same.
        outcome: The verdict.
    """

    task: int
    agreement: float | None
    annotators: int
    review: bool
    decided_at: float
    note: str
    facts: Facts | None = None
    drawing: Drawing | None = None
    outcome: str = "disputed"

    @property
    def conflicts(self) -> tuple[Said, ...]:
        """What is disputed."""
        return self.drawing.conflicts if self.drawing else ()

    @property
    def kinds(self) -> list[str]:
        """The types of its conflicts."""
        return sorted({said.type for said in self.conflicts})


@dataclass(frozen=True)
class Write:
    """One thing that quality control did to a task: when (seconds since 1970), the route, why, and its state."""

    at: float
    route: str
    reason: str
    state: str


class Queue:
    """Reads disputes from the database.

    Args:
        engine: The migrated database.
        project: The project's id.
    """

    def __init__(self, engine: sa.Engine, project: int) -> None:
        self._engine = engine
        self._project = project

    def count(self, search: Search) -> int:
        """How many disputes are found."""
        query = sa.select(sa.func.count()).select_from(TASKS).where(*self._where(search))
        with reading(self._engine) as connection:
            return int(connection.scalar(query) or 0)

    def page(self, search: Search) -> list[Dispute]:
        """One page of them."""
        # The ids first, from an index alone: rows with their drawings are wide, and only those of the page are wanted.
        ids = sa.select(TASKS.c.task).where(*self._where(search)).order_by(*_order(search))
        ids = ids.offset((search.page - 1) * PAGE).limit(PAGE)
        with reading(self._engine) as connection:
            found = [int(task) for task in connection.scalars(ids)]
        return self._read(found)

    def one(self, task: int) -> Dispute | None:
        """A task, disputed or not; None: quality control does not know it."""
        return next(iter(self._read([task])), None)

    def around(self, search: Search, dispute: Dispute) -> tuple[int | None, int | None]:
        """The disputes before and after one in the order of the search."""
        column, down = _sorted_by(search)
        value = getattr(dispute, SORTS[search.sort][1].name)
        value = -1.0 if value is None else value

        def nearest(*, up: bool) -> int | None:
            beyond = (
                (column > value, TASKS.c.task > dispute.task) if up else (column < value, TASKS.c.task < dispute.task)
            )
            way = sa.asc if up else sa.desc
            query = sa.select(TASKS.c.task).where(*self._where(search))
            query = query.where(sa.or_(beyond[0], sa.and_(column == value, beyond[1])))
            with reading(self._engine) as connection:
                return connection.scalar(query.order_by(way(column), way(TASKS.c.task)).limit(1))

        return nearest(up=down), nearest(up=not down)

    def all(self, search: Search) -> Iterator[dict[str, Any]]:
        """Every dispute that is found, for a file."""
        columns = (TASKS.c.task, TASKS.c.outcome, TASKS.c.agreement, TASKS.c.annotators, TASKS.c.review,
                   TASKS.c.decided_at, _WRITTEN, FACTS.c.kinds, FACTS.c.people)  # fmt: skip
        query = sa.select(*columns).select_from(_joined()).where(*self._where(search)).order_by(*_order(search))
        with reading(self._engine) as connection:
            for row in connection.execution_options(yield_per=1000).execute(query):
                yield {
                    "task": row.task, "verdict": row.outcome, "agreement": row.agreement, "annotators": row.annotators,
                    "waits_for_reviewer": bool(row.review), "judged_at": row.decided_at,
                    "conflicts": (row.kinds or "").split(), "people": [int(who) for who in (row.people or "").split()],
                    "note": _note(row.written),
                }  # fmt: skip

    def tasks(self) -> Iterator[dict[str, Any]]:
        """Every task of the project, for a file."""
        columns = (TASKS.c.task, TASKS.c.outcome, TASKS.c.agreement, TASKS.c.annotators, TASKS.c.review,
                   TASKS.c.decided_at, FACTS.c.kinds, FACTS.c.people, FACTS.c.at)  # fmt: skip
        query = sa.select(*columns).select_from(_joined()).where(TASKS.c.project == self._project)
        with reading(self._engine) as connection:
            for row in connection.execution_options(yield_per=1000).execute(query.order_by(TASKS.c.task)):
                yield {
                    "task": row.task, "verdict": row.outcome, "agreement": row.agreement, "annotators": row.annotators,
                    "waits_for_reviewer": bool(row.review), "judged_at": row.decided_at, "annotated_at": row.at or None,
                    "conflicts": (row.kinds or "").split(), "people": [int(who) for who in (row.people or "").split()],
                }  # fmt: skip

    def writes(self, task: int) -> list[Write]:
        """What quality control did to a task, the newest first."""
        query = sa.select(ACTIONS).where(ACTIONS.c.project == self._project, ACTIONS.c.task == task)
        with reading(self._engine) as connection:
            rows = connection.execute(query.order_by(ACTIONS.c.id.desc()).limit(50)).all()
        return [Write(row.created_at, row.route, row.reason, row.state) for row in rows]

    def counts(self) -> dict[str, int]:
        """Tasks by verdict, and under ``review`` those disputed or not judged that wait for a reviewer."""
        of_project = TASKS.c.project == self._project
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(TASKS.c.outcome, sa.func.count()).where(of_project).group_by(TASKS.c.outcome)
            ).all()
            review = connection.scalar(sa.select(sa.func.count()).where(of_project, *_FOR_REVIEW))
        return {str(outcome): int(count) for outcome, count in rows} | {"review": int(review or 0)}

    def _read(self, tasks: list[int]) -> list[Dispute]:
        query = sa.select(TASKS, _WRITTEN, FACTS.c.facts, FACTS.c.drawing).select_from(_joined())
        with reading(self._engine) as connection:
            rows = connection.execute(query.where(TASKS.c.project == self._project, TASKS.c.task.in_(tasks))).all()
        found = {
            row.task: Dispute(
                row.task, row.agreement, row.annotators, bool(row.review), row.decided_at, _note(row.written),
                None if row.facts is None else msgspec.json.decode(row.facts, type=Facts),
                None if row.drawing is None else msgspec.json.decode(row.drawing, type=Drawing),
                row.outcome,
            )
            for row in rows
        }  # fmt: skip
        return [found[task] for task in tasks if task in found]

    def _where(self, search: Search) -> list[sa.ColumnElement[bool]]:
        wanted = [TASKS.c.project == self._project, *STATES[search.state][1]]
        held = [FACTS.c.project == self._project]
        if STATES[search.state][1][0] is _DISPUTED:
            # Tasks without a dispute hold two blanks; what sorts behind them is found in the index.
            held.append(FACTS.c.kinds > "  ")
        least = len(held)
        if search.kind:
            held.append(FACTS.c.kinds.contains(f" {search.kind} ", autoescape=True))
        if search.person is not None:
            held.append(FACTS.c.people.contains(f" {search.person} ", autoescape=True))
        if len(held) > least:
            wanted.append(TASKS.c.task.in_(sa.select(FACTS.c.task).where(*held)))
        return wanted


def _order(search: Search) -> tuple[sa.ColumnElement[Any], ...]:
    column, down = _sorted_by(search)
    return (column.desc(), TASKS.c.task.desc()) if down else (column.asc(), TASKS.c.task.asc())


def _sorted_by(search: Search) -> tuple[sa.ColumnElement[Any], bool]:
    """What to order by, and whether downwards; what is not judged has no agreement, and counts as the least."""
    _, column, down = SORTS[search.sort]
    return (column if STATES[search.state][1][0] is _DISPUTED else sa.func.coalesce(column, -1.0)), down


def _joined() -> sa.FromClause:
    same = sa.and_(FACTS.c.project == TASKS.c.project, FACTS.c.task == TASKS.c.task)
    return TASKS.outerjoin(FACTS, same)


def _note(keys: str | None) -> str:
    held = json.loads(keys) if keys else {}
    return str(held.get("qc_note") or "") if isinstance(held, dict) else ""
