"""The doctor on fine-tuning and on the base model to start on."""

import pytest

from labelloop.doctor import training
from labelloop.doctor.context import DoctorContext
from labelloop.service.db.engine import open_database
from labelloop.service.settings import Settings
from ml_backend.learning.store.annotations import TrainingDataStore
from ml_backend.learning.store.train_jobs import TrainJobStore
from tests.fake_label_studio import FakeLabelStudio

PROJECT = 7


@pytest.fixture
def context(tmp_path):
    """context(policy): of a connected project."""

    def make(policy="", **values):
        settings = Settings(home=tmp_path, **values)
        studio = FakeLabelStudio(url="http://studio", served_version="")
        studio.put_project(PROJECT, label_config="<View/>")
        file = tmp_path / "ml_backend" / "learn.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(policy)
        TrainingDataStore(open_database(settings)).connect(PROJECT)
        return DoctorContext(settings, PROJECT, studio=studio)

    return make


@pytest.mark.parametrize(
    ("policy", "level", "said"),
    [
        ("", "ok", "torch is not installed"),
        ('[train]\non = "off"\n', "ok", "Fine-tuning is off"),
        ('[train]\non = "on"\n', "problem", "pip install 'labelloop[train]'"),
        ("[train]\nlabels = 0\n", "problem", "train.labels is 0"),
    ],
    ids=["auto", "off", "on", "wrong"],
)
def test_what_fine_tuning_lacks_is_said(context, policy, level, said):
    finding = training.fine_tuning(context(policy))
    assert (finding.level, said in finding.what) == (level, True), finding


def test_a_failed_fine_tuning_is_a_warning_with_its_reason(context):
    checked = context()
    jobs = TrainJobStore(open_database(checked.settings))
    job = jobs.begin(PROJECT, "a", labelled=9, minutes=1, cores=1, memory_bytes=0)
    jobs.finish(job.id, job.token, state="failed", reason="The model cannot be fine-tuned: it is quantised.")
    finding = training.fine_tuning(checked)
    assert finding.level == "warning"
    assert "it is quantised" in finding.what
    assert f"labelloop train {PROJECT}" in finding.fix


def test_a_better_model_than_the_embedded_one_is_offered(context, tmp_path):
    assert "labelloop models pull yolox-nano" in training.base_model(context()).what
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another model")
    assert "models pull" not in training.base_model(context(model=other)).what
