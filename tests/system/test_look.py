"""Near-duplicates among images uploaded to stock Label Studio: checked before the import, kept together in S3 after."""

import json

import pytest

from exporters.importing.run import ImportOptions, run_import
from exporters.pipeline.export import export
from labelloop.cli.check import dataset_check
from labelloop.service.settings import SecretStr
from labelloop.service.studio import Studio
from tests.exporters.look.look_images import CHANGES, drawn, encoded

pytestmark = pytest.mark.system

SPLIT = "train=.5,val=.5"


@pytest.fixture
def settings(label_studio, s3_server, tmp_path, monkeypatch):
    settings = s3_server.settings(
        tmp_path / "home",
        label_studio_url=label_studio.url,
        label_studio_api_key=SecretStr(label_studio.admin_token),
    )
    for name in ("home", "label_studio_url", "s3_endpoint_url", "s3_access_key_id"):
        monkeypatch.setenv(f"LABELLOOP_{name.upper()}", str(getattr(settings, name)))
    for name in ("label_studio_api_key", "s3_secret_access_key"):
        monkeypatch.setenv(f"LABELLOOP_{name.upper()}", getattr(settings, name).get_secret_value())
    return settings


@pytest.fixture
def yolo(tmp_path):
    """Twelve images and changed copies of six of them."""
    root = tmp_path / "yolo"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "data.yaml").write_text("train: images\nnames: [car]\n")
    images = {f"{seed:02d}": encoded(drawn(seed)) for seed in range(12)}
    images |= {f"copy{seed:02d}": CHANGES["all of it"](drawn(seed)) for seed in range(6)}
    for name, data in images.items():
        (root / "images" / f"{name}.jpg").write_bytes(data)
        (root / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    return root


def checked(place, tmp_path):
    status = dataset_check(str(place), json=tmp_path / "check.json")
    return status, json.loads((tmp_path / "check.json").read_bytes())


def test_twins_of_a_project_share_a_split_in_the_bucket(settings, s3_server, yolo, tmp_path):
    assert checked(yolo, tmp_path)[1]["counts"]["twins"] == 6
    studio = Studio.from_settings(settings)
    report = run_import(ImportOptions(source=str(yolo), title="look"), settings=settings, studio=studio)
    studio.close()
    to = f"s3://{s3_server.make_bucket()}/set"
    export(str(report.project), settings=settings, formats=("coco",), to=to, split=SPLIT)
    status, found = checked(to, tmp_path)
    apart = found["counts"]["twins-across-splits"]
    assert (status, found["looked_at"]["images read"]) == (1, 18)
    grouped = export(str(report.project), settings=settings, formats=("coco",), to=to, split=SPLIT, group_by="look")
    assert any("moved" in warning for warning in grouped.warnings)
    status, found = checked(to, tmp_path)
    assert (status, found["looked_at"]["images read"]) == (0, 0)
    assert found["counts"]["twins"] == 6
    assert apart <= 6
