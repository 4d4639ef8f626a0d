"""Database tables of learning: projects, training data, task vectors, label error notes, training runs."""

import sqlalchemy as sa

metadata = sa.MetaData()

# Connected projects: how far the poller has read each, and the current phase of its run (empty: idle). `cursor`: Label
# Studio's task.updated_at. `fingerprint`: of the training data of the last run. `config`: of the label config with
# which the tasks were read. `untold_since`: since when a version is served but not announced to Label Studio, because
# its predictions come first. `withheld`: the label issues that are not raised, in words.
PROJECTS = sa.Table(
    "learn_projects",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("connected_at", sa.Double),  # all times: seconds since 1970
    sa.Column("cursor", sa.Text),
    sa.Column("swept_at", sa.Double),
    sa.Column("fingerprint", sa.Text),
    sa.Column("phase", sa.Text),
    sa.Column("phase_done", sa.Integer),
    sa.Column("phase_total", sa.Integer),
    sa.Column("phase_at", sa.Double),
    sa.Column("config", sa.Text),
    sa.Column("untold_since", sa.Double),
    sa.Column("withheld", sa.Text),
)

# Training data of annotated tasks. A task that lost its annotations keeps its row, so that its removal is trained in.
TASKS = sa.Table(
    "learn_tasks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seen", sa.Text),  # checksum of everything that determines its training data
    sa.Column("state", sa.Text),  # teaches | held_out | left_out | gone
    sa.Column("reason", sa.Text),  # teaches, held_out: whose annotation counts; left_out: why
    sa.Column("annotations", sa.Text),  # JSON: ids of all its annotations
    sa.Column("photos", sa.Text),  # JSON: [`annotations.LabelledImage`]: boxes, masks, points and answers of each image
    sa.Column("boxes", sa.Integer),
    sa.Column(
        "shown", sa.Text
    ),  # JSON: the pre-label the annotator started from, as `photos`, with `scores`; null: none
    sa.Column("shown_version", sa.Text),  # model version of it
    # JSON, as `shown`: all detections, also below the threshold, of the version served before it was trained on the
    # task. null: no learned version was served.
    sa.Column("found", sa.Text),
    sa.Column("annotator", sa.Integer),  # of the annotation that counts; null: several
    sa.Column("lead_time", sa.Double),  # seconds
    sa.Column("drawn_at", sa.Text),  # Label Studio's updated_at of the annotation that counts
    sa.Column("learned", sa.Text),  # `seen` at the time of training of the published version; null: not in it
    sa.Column("read_at", sa.Double),
)

# Every task of a project: whether it is open, the vector of its images, and its rank among the open tasks. Labelled
# tasks keep their vector, because the next images are chosen to differ from theirs.
TASK_VECTORS = sa.Table(
    "learn_looks",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("backbone", sa.Text),  # backbone version of `vector`; empty: no vector
    sa.Column("photo", sa.Text),  # checksum of the images' addresses
    sa.Column("vector", sa.LargeBinary),  # float32, little-endian, of length 1
    sa.Column("version", sa.Text),  # learned version that predicted it last; empty: none
    sa.Column("doubt", sa.Double),  # see `acquisition.uncertainty`; null: no detections
    sa.Column("score", sa.Double),  # of the prediction written last: Label Studio serves the lowest first
    sa.Column("mark", sa.Text),  # see `service.studio.task_cache`; empty: not read yet
    sa.Column("live", sa.Integer),  # annotations, skipped ones apart; a task without any is open
    sa.Column("skipped", sa.Integer),
    sa.Column("turn", sa.BigInteger),  # order of embedding: random, failures last
    sa.Column("chance", sa.BigInteger),  # CRC-32 of `vector`, the order of the random sample; null: no vector
    sa.Column("prelabel", sa.Text),  # model version of the prediction written last; empty: none
)

# Sync state of a project's tasks in `learn_looks`.
MIRRORS = sa.Table(
    "learn_mirrors",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("notes", sa.Text),  # JSON: see `service.studio.task_cache.IncrementalSync`; `backbone`: of the vectors
)

# Label error notes, as in `qc_model_note` and `qc_model_score` of the task data.
LABEL_ERROR_NOTES = sa.Table(
    "learn_opinions",
    metadata,
    sa.Column("project", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("task", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text),
    sa.Column("score", sa.Double),  # confidence of the most confident issue
    sa.Column("told_at", sa.Double),
)

# One row per training run with a verdict. Rows are never deleted.
TRAINING_RUNS = sa.Table(
    "learn_runs",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project", sa.Integer),
    sa.Column("asked_at", sa.Double),  # time of its first event
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("source", sa.Text),  # what asked for it: Label Studio's actions, poll, command; joined by +
    sa.Column("tasks", sa.Integer),  # labelled tasks that it was trained on
    sa.Column("held_out", sa.Integer),  # labelled tasks held out for evaluation
    sa.Column("boxes", sa.Integer),  # boxes that it was trained on
    sa.Column("classes", sa.Text),  # JSON: {class: boxes}
    sa.Column("base", sa.Text),  # version of its base model
    sa.Column("parent", sa.Text),  # version served before
    sa.Column("version", sa.Text),  # the candidate; empty: none
    sa.Column("verdict", sa.Text),  # published | refused | withdrawn | failed; admitted: external model, passed
    sa.Column("judged_by", sa.Text),  # held-out | cross-validation | labelled images | nothing
    sa.Column("reason", sa.Text),  # reason of the verdict
    sa.Column("ap50", sa.Double),  # of the candidate, mean over classes
    sa.Column("parent_ap50", sa.Double),  # of the model it was compared with
    sa.Column("tolerance", sa.Double),  # accepted drop in `ap50`, in addition to chance
    sa.Column("metrics", sa.Text),  # JSON: see `runs.Metrics`
    sa.Column("seconds", sa.Text),  # JSON: {phase: seconds}, see `runs.PHASES`
)

# Fine-tunings: waiting, running with a lease, or ended. The last ones of each project are kept.
TRAIN_JOBS = sa.Table(
    "learn_train_jobs",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
    sa.Column("project", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # see `train_jobs.STATES`
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("labelled", sa.Integer, nullable=False),  # labelled tasks when it was created
    sa.Column("place", sa.Text, nullable=False),  # anywhere | worker | trainer
    sa.Column("minutes", sa.Double, nullable=False),
    sa.Column("cores", sa.Integer, nullable=False),
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),  # who runs it, or ran it last; empty: not run yet
    sa.Column("token", sa.Text, nullable=False),  # of the lease; empty: not leased
    sa.Column("leased_until", sa.Double),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("base", sa.Text, nullable=False),  # version that a trainer was handed
    sa.Column("classes", sa.Text, nullable=False),  # JSON: the classes of the data that it was handed, in order
    sa.Column("progress", sa.Text, nullable=False),  # JSON: `train_jobs.TrainProgress`
    sa.Column("version", sa.Text, nullable=False),  # that came of it; empty: none
    sa.Column("reason", sa.Text, nullable=False),  # of the verdict or the failure
)

# Trainers on other machines, by their last call.
TRAINERS = sa.Table(
    "learn_trainers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)
