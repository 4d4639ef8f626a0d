"""The page of `bench train` has the fits of the record and of this machine, and what the trial decides."""

import json

import pytest

from bench import train


def fit(key, refit=0.5, upon=0.8, trial=None):
    return {
        "key": key, "boxes": 20, "refit": refit, "tuned": 0.7, "upon": upon, "trial": trial, "seen": 8,
        "cpu_minutes": None, "curve": [[0.1, 3.0, 0.2]],
    }  # fmt: skip


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """kept(in the record, of this machine) -> the fits of the page."""
    monkeypatch.setattr(train, "RECORD", tmp_path / "train.jsonl")
    monkeypatch.setattr(train, "WORK", tmp_path)

    def write(record, here):
        for name, fits in (("train", record), ("fits", here)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in fits))
        return train.recorded()

    return write


def test_a_fit_that_is_not_made_again_keeps_its_figures(kept):
    done = kept([fit("bccd:20:0"), fit("bccd:20:1")], [fit("bccd:20:1", refit=0.6), fit("bccd:50:0")])
    assert {key: one["refit"] for key, one in done.items()} == {"bccd:20:0": 0.5, "bccd:20:1": 0.6, "bccd:50:0": 0.5}
    again = train.results(train.RECORD)
    assert {key: one["refit"] for key, one in again.items()} == {key: one["refit"] for key, one in done.items()}
    assert "curve" not in again["bccd:50:0"]


def test_a_fit_of_an_earlier_bench_is_named_and_does_not_end_the_page(kept, tmp_path, capsys):
    old = {name: value for name, value in fit("bccd:20:0", refit=0.1).items() if name != "boxes"}
    done = kept([fit("bccd:20:0")], [old, fit("bccd:20:1")])
    assert {key: one["refit"] for key, one in done.items()} == {"bccd:20:0": 0.5, "bccd:20:1": 0.5}
    with (tmp_path / "fits.jsonl").open("a") as stream:
        stream.write('{"key": "bccd:50:0", "refit"')
    assert "| blood cells (BCCD val) | 20 | 2 |" in train.page(train.recorded())
    said = capsys.readouterr().err
    assert f"line 1 of {tmp_path / 'fits.jsonl'} has no boxes." in said
    assert "line 3" in said


def test_the_page_names_what_is_served_and_what_is_missing(kept):
    gains, stays = ({"refit": 0.5, "tuned": tuned, "images": 5, "boxes": 20} for tuned in (0.7, 0.55))
    page = train.page(kept([fit("bccd:20:0", trial=gains), fit("bccd:20:1", trial=stays)], [fit("bccd:200:0")]))
    [few] = [line for line in page.splitlines() if line.startswith("| blood cells (BCCD val) | 20 |")]
    assert "0.500 / 0.700 (20); 0.500 / 0.550 (20) | **0.650** (+0.150)" in few  # one is tuned, one the refit
    [many] = [line for line in page.splitlines() if line.startswith("| blood cells (BCCD val) | 200 |")]
    assert "| - | **0.800** (+0.300)" in many
    assert "bccd:20:2" in page.partition("Not measured yet: ")[2]
