"""Model versions on a real S3 server: two machines serve the same one, swap together, and outlive the bucket."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from labelloop.service.store import open_store
from ml_backend.serving.activation import activate, roll_back
from ml_backend.serving.model_server import ModelServer
from ml_backend.serving.registry import Registry

pytestmark = pytest.mark.system


def tiny(path, place):
    """A detector of one box."""
    arrays = {"boxes": [[[place, 8, place + 20, 24]]], "objectness": [[0.9]], "scores": [[[0.9]]]}
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), f"c-{name}") for name, value in arrays.items()]
    nodes = [helper.make_node("Identity", [f"c-{name}"], [name]) for name in arrays]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, np.shape(value)) for name, value in arrays.items()
    ]
    inputs = [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 64, 96])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    told = {"names": ["cat"], "input": {"size": [64, 96]}}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    onnx.save(model, path)
    return path


@pytest.fixture
def machines(s3_server, tmp_path):
    """The settings of two machines that share a bucket and nothing else."""
    bucket = s3_server.make_bucket()
    return [
        s3_server.settings(tmp_path / name, store_url=f"s3://{bucket}/loop", model=tiny(tmp_path / "given.onnx", 1))
        for name in ("one", "two")
    ]


def test_two_machines_serve_one_bucket_swap_together_and_go_on_without_it(machines, tmp_path, wait_until):
    backends = [ModelServer.from_settings(one) for one in machines]
    for backend in backends:
        backend.start()
        backend.served(wait_s=90)
    registry = Registry(open_store(machines[0].store_url, machines[0]))
    first, second = (
        registry.add(tiny(tmp_path / f"{name}.onnx", place)).version for name, place in (("a", 10), ("b", 30))
    )
    for version, act in (
        (first, lambda: activate(first, settings=machines[0])),
        (second, lambda: activate(second, settings=machines[1])),
        (first, lambda: roll_back(settings=machines[0])),
    ):
        act()
        wait_until(lambda version=version: all(one.version() == version for one in backends), timeout_s=90)
        assert {one.served().detector.version for one in backends} == {version}
        copies = [one.served().detector.path for one in backends]
        assert [copy.is_relative_to(machine.home) for copy, machine in zip(copies, machines, strict=True)] == [
            True,
            True,
        ]
    activate(second, settings=machines[0], project=7)
    wait_until(lambda: all(one.version("7.1") == second for one in backends), timeout_s=90)
    assert {one.version("8.1") for one in backends} == {first}
    # The bucket is out of reach when the machine starts again: it goes on with what it saw last.
    gone = machines[1].replace(s3_endpoint_url="http://127.0.0.1:9")
    again = ModelServer.from_settings(gone)
    again.start()
    assert again.version() == first
    assert again.served("7.1", wait_s=90).version == second
    assert again.served("8.1", wait_s=90).version == first
