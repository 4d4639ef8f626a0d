"""Pre-labelling over a Ray cluster gives what one process gives, through a worker that dies, never far ahead."""

import base64
import io
import sys

import pytest

from labelloop.service.errors import MissingExtra
from labelloop.service.settings import Settings
from ml_backend.bulk.prelabel import CHUNK, prelabel
from ml_backend.bulk.ray_cluster import CHUNKS_PER_WORKER, LOCAL_CLUSTER, ClusterFailed, PrelabelCluster
from ml_backend.predict.protocol import ProjectOptions
from ml_backend.serving.activation import open_served_model
from tests.ml_backend.bulk.test_prelabel import PrelabelStudio


@pytest.fixture
def settings(tmp_path, labelloop_model):
    return Settings(home=tmp_path / "home", model=labelloop_model())


def options_of(settings, xml, version):
    return {"settings": settings, "version": version, "xml": xml, "options": ProjectOptions()}


def test_without_ray_the_extra_is_named(settings, boxes_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="scale"):
        PrelabelCluster(LOCAL_CLUSTER, workers=1, **options_of(settings, boxes_config, "v"))


@pytest.mark.slow
def test_cluster_equals_one_process_although_a_worker_dies(settings, boxes_config, astronaut, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'labelloop[scale]'")
    from PIL import Image

    from labelloop.service.media import Media

    buffer = io.BytesIO()
    Image.fromarray(astronaut).save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    urls = {number: url if number % 30 else "data:image/jpeg;base64,AAAA" for number in range(1, 8 * CHUNK + 1)}
    detector, _ = open_served_model(settings)
    common = {
        "detector": detector, "photos": Media(settings, None), "score_threshold": settings.score_threshold,
        "options": ProjectOptions(),
    }  # fmt: skip
    alone, spread = PrelabelStudio(boxes_config, urls), PrelabelStudio(boxes_config, urls)
    plain = prelabel(alone, 1, **common)
    started, finished = 0, 0
    with PrelabelCluster(LOCAL_CLUSTER, workers=2, **options_of(settings, boxes_config, detector.version)) as cluster:
        assert cluster.workers == 2

        def predict_chunks(chunks):
            nonlocal started, finished

            def counted():
                nonlocal started
                for chunk in chunks:
                    started += 1
                    yield chunk

            for result in cluster.predict_chunks(counted()):
                assert started - finished <= CHUNKS_PER_WORKER * cluster.workers
                finished += 1
                if finished == 1:
                    ray.kill(cluster._workers[0], no_restart=False)
                yield result

        report = prelabel(spread, 1, **common, predict_chunks=predict_chunks)
        broken = _on(cluster, options_of(settings, boxes_config, "gone-123"))
        with pytest.raises(ClusterFailed, match="no model version") as error:
            list(broken.predict_chunks(iter([[{"id": 1, "data": {"image": url}}]])))
        assert error.value.fix
    assert (report.imported, report.boxes, len(report.failures)) == (plain.imported, plain.boxes, len(plain.failures))

    def shown(studio):
        return sorted((item["task"], item["score"], str(item["result"])) for item in studio.predictions)

    assert shown(spread) == shown(alone)


def _on(cluster, options):
    """Workers for other options on the cluster that runs."""
    import copy

    import ray

    from ml_backend.bulk.ray_cluster import PrelabelWorker

    other = copy.copy(cluster)
    looker = ray.remote(num_cpus=0)(PrelabelWorker)
    other._lookers = [looker.remote(options["settings"], options["version"], options["xml"], options["options"])]
    return other


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_plainly(settings, boxes_config):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'labelloop[scale]'")
    with pytest.raises(ClusterFailed, match="cannot be joined"):
        PrelabelCluster("auto", workers=1, **options_of(settings, boxes_config, "v"))
