"""The tables of quality control: connected projects, the annotation-to-task map, each task's state, the write log."""

import sqlalchemy as sa

metadata = sa.MetaData()

# A connected project and how far the poller has read it. `cursor` is Label Studio's own task.updated_at; `settled`
# says that a poll found nothing beyond it. Times are seconds since 1970.
PROJECTS = sa.Table(
    "qc_projects",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("connected_at", sa.Double),
    sa.Column("cursor", sa.Text),
    sa.Column("settled", sa.Boolean),
    sa.Column("polled_at", sa.Double),
    sa.Column("swept_at", sa.Double),
    sa.Column("evaluates", sa.Boolean),  # whether we let Label Studio serve tasks with a ground truth first
)

# Which task an annotation belongs to (ANNOTATIONS_DELETED carries ids alone) and the version of it that was judged.
# Label Studio on SQLite gives the ids of deleted rows to new ones: one id may stand in two tasks for a while.
ANNOTATIONS = sa.Table(
    "qc_annotations",
    metadata,
    sa.Column("annotation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("project", sa.Integer),
    sa.Column("updated_at", sa.Text),
    sa.Column("annotator", sa.Integer),
)

# What was decided last about a task and what we left behind in it, so that a human's change is told from ours.
TASKS = sa.Table(
    "qc_tasks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("born", sa.Text),  # the task's created_at: another task may get the id of a deleted one
    sa.Column("fingerprint", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("agreement", sa.Double),
    sa.Column("annotators", sa.Integer),
    sa.Column("review", sa.Boolean),
    sa.Column("keys", sa.Text),  # JSON: the qc_* keys as we wrote them; null: never written
    sa.Column("asked_overlap", sa.Integer),  # the overlap that we set; null: never, or withdrawn
    sa.Column("asked_at", sa.Integer),  # with how many annotators we set it
    sa.Column("found_overlap", sa.Integer),  # the overlap before our first change
    sa.Column("decided_at", sa.Double),
    sa.Column("stamp", sa.Text),  # the task's updated_at when it was compared last; the same: nothing changed
    sa.Column("overlay", sa.Text),  # the fingerprint that the overlays were settled for; null: there are to be none
)

# Every automatic write, before and after. It is written as `planned` first, so that a killed worker leaves a trace.
ACTIONS = sa.Table(
    "qc_actions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project", sa.Integer),
    sa.Column("task", sa.Integer),
    sa.Column("route", sa.Text),  # keys of ROUTES, joined by +
    sa.Column("reason", sa.Text),
    sa.Column("before", sa.Text),  # JSON: only what the write changes
    sa.Column("after", sa.Text),
    sa.Column("state", sa.Text),  # planned -> done | overtaken; done -> undone | left
    sa.Column("created_at", sa.Double),
)

# What is known of a task beside its verdict: who answered what, how long it took, and, of a dispute, its drawing. JSON
# of `facts.Facts` and `drawing.Drawing`; `kinds` and `people` hold the types of conflicts and the annotators between
# blanks, to be searched by.
FACTS = sa.Table(
    "qc_facts",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double),  # when the task was annotated last; 0: Label Studio does not say
    sa.Column("kept_at", sa.Double),
    sa.Column("kinds", sa.Text),
    sa.Column("people", sa.Text),
    sa.Column("facts", sa.Text),
    sa.Column("drawing", sa.Text),
)

# What the dashboard shows of a project, counted by the worker: JSON of `board.Board`, and the arrays of `replay`.
BOARDS = sa.Table(
    "qc_boards",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double),
    sa.Column("took_s", sa.Double),
    sa.Column("tasks", sa.Integer),
    sa.Column("newest", sa.Double),  # the newest `kept_at` that is in it
    sa.Column("board", sa.Text),
    sa.Column("replay", sa.LargeBinary),
)

# Refused log-ins by client, so that every process counts the same ones.
REFUSALS = sa.Table(
    "dashboard_refusals",
    metadata,
    sa.Column("client", sa.Text, primary_key=True),
    sa.Column("refused", sa.Integer),
    sa.Column("since", sa.Double),
)

# What is known of a project's annotators: JSON of `labelloop.labeling.consensus.consensus.Crowd`.
CROWDS = sa.Table(
    "qc_crowds",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double),
    sa.Column("took_s", sa.Double),
    sa.Column("tasks", sa.Integer),
    sa.Column("newest", sa.Double),  # the newest `kept_at` of facts that is in it
    sa.Column("crowd", sa.Text),
)

# Tasks whose ground truth is known. `wanted` is the overlap with which annotators are measured by the task (null: none
# is), `revision` counts its changes, `carried` is the one that the task was last brought to; `ours` is false where
# somebody changed the overlap since.
TRUTHS = sa.Table(
    "qc_truths",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotation", sa.Integer),
    sa.Column("annotators", sa.Integer),
    sa.Column("ours", sa.Boolean),
    sa.Column("wanted", sa.Integer),
    sa.Column("revision", sa.Integer),
    sa.Column("carried", sa.Integer),
)

# The review project of a project. `review` is null while it is being made.
REVIEWS = sa.Table(
    "qc_reviews",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("review", sa.Integer),
    sa.Column("prefilled", sa.Boolean),  # whether its label stream was told once to fill in the proposed consensus
    sa.Column("made_at", sa.Double),
    sa.Column("interface", sa.Text),  # a digest of the labelling interface that it was given last
)

# Tasks that were copied into a review project: for which state of the task, and a digest of what the copy holds.
COPIES = sa.Table(
    "qc_copies",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("review", sa.Integer),
    sa.Column("copy", sa.Integer),
    sa.Column("fingerprint", sa.Text),
    sa.Column("mark", sa.Text),
)
