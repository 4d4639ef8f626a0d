"""Long benches in parts: what is measured once, and what is measured again."""

import pytest

from bench import parts
from bench.parts import Parts


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """opened() -> the parts of a bench, as a run of its own finds them; its code and model are in `tmp_path`."""
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "masks.py").write_text("code")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.onnx").write_bytes(b"weights")
    return lambda: Parts("masks", ("models",))


def test_a_run_goes_on_where_the_last_one_stopped(opened):
    first = opened()
    assert (first.rows("a", lambda: ["1"]), first.rows("b", lambda: ["2"])) == (["1"], [])
    assert "b" in first.remark
    second = opened()
    assert (second.rows("a", lambda: ["other"]), second.rows("b", lambda: ["2"])) == (["1"], ["2"])
    assert not second.remark


def test_other_code_or_another_model_is_measured_again(opened, tmp_path):
    opened().rows("a", lambda: ["1"])
    (tmp_path / "models" / "model.onnx").write_bytes(b"others")
    assert opened().rows("a", lambda: ["2"]) == ["2"]


def test_a_part_whose_data_was_missing_is_measured_once_it_is_there(opened):
    first = opened()
    assert first.rows("a", list) == []
    assert first.missing == []
    assert opened().rows("a", lambda: ["1"]) == ["1"]
