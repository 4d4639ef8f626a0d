"""Database tables of quality control: projects, annotations, task decisions, the write log, derived statistics."""

import sqlalchemy as sa

metadata = sa.MetaData()

# Connected projects and the poller's position in each. `cursor` is Label Studio's task.updated_at; `settled` is true
# after a poll without newer tasks. Times are seconds since 1970.
PROJECTS = sa.Table(
    "qc_projects",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("connected_at", sa.Double),
    sa.Column("cursor", sa.Text),
    sa.Column("settled", sa.Boolean),
    sa.Column("polled_at", sa.Double),
    sa.Column("swept_at", sa.Double),
    sa.Column("evaluates", sa.Boolean),  # whether Label Studio was set to serve tasks with a ground truth first
    sa.Column("defaults", sa.Integer),  # version of the policy's defaults; null: before single objects decided
)

# Task of each annotation (ANNOTATIONS_DELETED carries ids alone) and the version that was judged. Label Studio on
# SQLite reuses the ids of deleted rows: an id may belong to two tasks for a while.
ANNOTATIONS = sa.Table(
    "qc_annotations",
    metadata,
    sa.Column("annotation", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("project", sa.Integer),
    sa.Column("updated_at", sa.Text),
    sa.Column("annotator", sa.Integer),
)

# Last decision about each task and the values written to it, which distinguish a human's change from ours.
TASKS = sa.Table(
    "qc_tasks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("born", sa.Text),  # the task's created_at: a new task may reuse the id of a deleted one
    sa.Column("fingerprint", sa.Text),
    sa.Column("outcome", sa.Text),
    sa.Column("agreement", sa.Double),
    sa.Column("annotators", sa.Integer),
    sa.Column("review", sa.Boolean),
    sa.Column("keys", sa.Text),  # JSON: the qc_* keys as written; null: never written
    sa.Column("asked_overlap", sa.Integer),  # the overlap set by us; null: never set, or withdrawn
    sa.Column("asked_at", sa.Integer),  # number of annotators when it was set
    sa.Column("found_overlap", sa.Integer),  # the overlap before our first change
    sa.Column("decided_at", sa.Double),
    sa.Column("stamp", sa.Text),  # the task's updated_at at the last comparison; equal: nothing changed
    sa.Column("overlay", sa.Text),  # the fingerprint that the overlays were written for; null: no overlays
)

# Log of automatic writes with the values before and after. A write is logged as `planned` first, so that a write of a
# killed worker is found.
ACTIONS = sa.Table(
    "qc_actions",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project", sa.Integer),
    sa.Column("task", sa.Integer),
    sa.Column("route", sa.Text),  # keys of ROUTES, joined by +
    sa.Column("reason", sa.Text),
    sa.Column("before", sa.Text),  # JSON: only the changed fields
    sa.Column("after", sa.Text),
    sa.Column("state", sa.Text),  # planned -> done | overtaken; done -> undone | left
    sa.Column("created_at", sa.Double),
)

# Answers, times and (for disputes) the drawing of each task: JSON of `Facts` and `Drawing`. `kinds` and `people` hold
# the conflict types and the annotators separated by blanks, for searching.
FACTS = sa.Table(
    "qc_facts",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double),  # time of the last annotation; 0: not given by Label Studio
    sa.Column("kept_at", sa.Double),
    sa.Column("kinds", sa.Text),
    sa.Column("people", sa.Text),
    sa.Column("facts", sa.Text),
    sa.Column("drawing", sa.Text),
)

# Summary of each project for the dashboard, computed by the worker: JSON of `ProjectSummary`, and the packed `Replay`.
BOARDS = sa.Table(
    "qc_boards",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double),
    sa.Column("took_s", sa.Double),
    sa.Column("tasks", sa.Integer),
    sa.Column("newest", sa.Double),  # the newest `kept_at` included
    sa.Column("board", sa.Text),
    sa.Column("replay", sa.LargeBinary),
)

# Refused log-ins by client, shared by all processes.
REFUSALS = sa.Table(
    "dashboard_refusals",
    metadata,
    sa.Column("client", sa.Text, primary_key=True),
    sa.Column("refused", sa.Integer),
    sa.Column("since", sa.Double),
)

# Annotator model of each project: JSON of `labelloop.labeling.consensus.consensus.AnnotatorModel`.
CROWDS = sa.Table(
    "qc_crowds",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("made_at", sa.Double),
    sa.Column("took_s", sa.Double),
    sa.Column("tasks", sa.Integer),
    sa.Column("newest", sa.Double),  # the newest `kept_at` of the facts included
    sa.Column("crowd", sa.Text),
)

# Tasks with a ground truth. `wanted` is the overlap requested to measure annotators on the task (null: none),
# `revision` counts its changes, `carried` is the revision applied last; `ours` is false where a person changed the
# overlap since.
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

# Review project of each project. `review` is null while it is being created.
REVIEWS = sa.Table(
    "qc_reviews",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("review", sa.Integer),
    sa.Column("prefilled", sa.Boolean),  # whether its label stream was set to prefill the consensus
    sa.Column("made_at", sa.Double),
    sa.Column("interface", sa.Text),  # digest of the labeling interface written last
)

# Copies of tasks in review projects, with the fingerprint of the task and a digest of the copy's content.
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

# Verdict on each task under the newest defaults, for projects that keep older ones. `kinds` holds the conflict types
# separated by blanks.
PREVIEWS = sa.Table(
    "qc_previews",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text),
    sa.Column("kinds", sa.Text),
)

# Tasks that a reviewer sent back to an annotator, the last time for each. `version` is the updated_at of the
# annotation at that time; a newer one is the redone work.
SEND_BACKS = sa.Table(
    "qc_send_backs",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotator", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Text),
    sa.Column("comment", sa.Text),
    sa.Column("sent_at", sa.Double),
    sa.Column("redone_at", sa.Double),
    sa.Column("accepted_at", sa.Double),
)

# Ground truths that a reviewer confirmed although the annotators contradict them.
CONFIRMED_TRUTHS = sa.Table(
    "qc_confirmed_truths",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("annotation", sa.Integer),
)
