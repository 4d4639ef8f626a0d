"""The tables of learning: projects, what each task teaches, what is known of photos, opinions, the memory of runs."""

import sqlalchemy as sa

metadata = sa.MetaData()

# A project that learns, how far the poller has read it, and what the worker is doing for it now (`phase`, empty: it
# waits). `cursor` is Label Studio's own task.updated_at. `fingerprint`: of the lessons that the last run was made from.
# `config`: of the label config by which the tasks were read. `untold_since`: a version is served that Label Studio was
# not told of yet, because its predictions come first.
PROJECTS = sa.Table(
    "learn_projects",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("connected_at", sa.Double),  # this and every other moment: seconds since 1970
    sa.Column("cursor", sa.Text),
    sa.Column("swept_at", sa.Double),
    sa.Column("fingerprint", sa.Text),
    sa.Column("phase", sa.Text),
    sa.Column("phase_done", sa.Integer),
    sa.Column("phase_total", sa.Integer),
    sa.Column("phase_at", sa.Double),
    sa.Column("config", sa.Text),
    sa.Column("untold_since", sa.Double),
)

# What an annotated task teaches. A task that lost its annotations keeps its row, so that it is seen to be un-learned.
TASKS = sa.Table(
    "learn_tasks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seen", sa.Text),  # fingerprint of all that decides what it teaches
    sa.Column("state", sa.Text),  # teaches | held_out | left_out | gone
    sa.Column("reason", sa.Text),  # teaches, held_out: whose annotation counts; left_out: why
    sa.Column("annotations", sa.Text),  # JSON: ids of all its annotations
    sa.Column("photos", sa.Text),  # JSON: [{url, width, height, boxes: [[x0, y0, x1, y1]], labels, complete}], pixels
    sa.Column("boxes", sa.Integer),
    sa.Column("shown", sa.Text),  # JSON: the pre-label the annotator began with, as `photos`, with `scores`; null: none
    sa.Column("shown_version", sa.Text),  # model version of it
    # JSON, as `shown`: all that the version which was served then found, also what was too weak to be shown; it had not
    # learned from the photo. null: nothing that learned was served.
    sa.Column("found", sa.Text),
    sa.Column("annotator", sa.Integer),  # of the annotation that counts; null: several
    sa.Column("lead_time", sa.Double),  # seconds
    sa.Column("drawn_at", sa.Text),  # Label Studio's updated_at of the annotation that counts
    sa.Column("learned", sa.Text),  # `seen` as it is in the version that was published last; null: not in it
    sa.Column("read_at", sa.Double),
)

# Every task of a project: whether it is open, what its photos show as a whole, and its place among the open tasks.
# Labelled tasks keep their vector: the next photos are to be unlike theirs.
LOOKS = sa.Table(
    "learn_looks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("backbone", sa.Text),  # version of the model whose features `vector` is from; empty: not looked at
    sa.Column("photo", sa.Text),  # checksum of the photos' addresses
    sa.Column("vector", sa.LargeBinary),  # float32, little-endian, of length 1
    sa.Column("version", sa.Text),  # learned version that looked at it last; empty: none
    sa.Column("doubt", sa.Double),  # as `acquisition.uncertainty` has it; null: nothing was seen
    sa.Column("score", sa.Double),  # of the prediction written last: Label Studio serves the lowest first
    sa.Column("mark", sa.Text),  # as `service.mirror.text_of` has it; empty: Label Studio was not asked for it yet
    sa.Column("live", sa.Integer),  # annotations, skipped ones apart; a task without any is open
    sa.Column("skipped", sa.Integer),
    sa.Column("turn", sa.BigInteger),  # photos are looked at in this order: by chance, after failures last
    sa.Column("chance", sa.BigInteger),  # CRC-32 of `vector`, the order of a fair sample; null: there is no vector
    sa.Column("prelabel", sa.Text),  # model version of the prediction written last; empty: none
)

# How far the tasks of a project in `learn_looks` are read.
MIRRORS = sa.Table(
    "learn_mirrors",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("notes", sa.Text),  # JSON: see `service.mirror.Tracker`; `backbone`: of the vectors
)

# A task on which the model differs from what was drawn, as its data says it in `qc_model_note` and `qc_model_score`.
OPINIONS = sa.Table(
    "learn_opinions",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
    sa.Column("score", sa.Double),  # confidence of the surest difference
    sa.Column("told_at", sa.Double),
)

# One row a fit that came to a verdict. Nothing is deleted here.
RUNS = sa.Table(
    "learn_runs",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project", sa.Integer),
    sa.Column("asked_at", sa.Double),  # the first event that it answers
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("source", sa.Text),  # what asked for it: Label Studio's actions, poll, command; joined by +
    sa.Column("tasks", sa.Integer),  # labelled tasks that it learned from
    sa.Column("held_out", sa.Integer),  # labelled tasks that are kept for judging
    sa.Column("boxes", sa.Integer),  # boxes that it learned from
    sa.Column("classes", sa.Text),  # JSON: {class: boxes}
    sa.Column("base", sa.Text),  # version whose features it was fitted on
    sa.Column("parent", sa.Text),  # version that was served before
    sa.Column("version", sa.Text),  # the candidate; empty: there was none
    sa.Column("verdict", sa.Text),  # published | refused | withdrawn | failed; admitted: made elsewhere, passed
    sa.Column("judged_by", sa.Text),  # held-out | cross-validation | labelled photos | nothing
    sa.Column("reason", sa.Text),  # the verdict in words
    sa.Column("ap50", sa.Double),  # of the candidate, mean over classes
    sa.Column("parent_ap50", sa.Double),  # of what it was compared with
    sa.Column("tolerance", sa.Double),  # how much lower `ap50` might have been, beside chance
    sa.Column("metrics", sa.Text),  # JSON: see `runs.Metrics`
    sa.Column("seconds", sa.Text),  # JSON: {phase: seconds}, see `runs.PHASES`
)
