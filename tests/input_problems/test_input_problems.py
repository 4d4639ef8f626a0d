"""Every input problem of docs/reference/input-problems.md, run from the command line."""

import pytest

from labelloop.cli.main import main
from tests.input_problems.page import PAGE, areas, rendered

CASES = [
    pytest.param(module, case, id=f"{module.SECTION}: {case.problem} {number}")
    for module in areas().values()
    for number, case in enumerate(module.CASES)
]


@pytest.mark.parametrize(("module", "case"), CASES)
def test_input_problem_ends_as_the_page_says(module, case, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LABELLOOP_LOCAL_FILES_ROOT", str(tmp_path / "photos"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "input"
    folder.mkdir()
    if prepare := getattr(module, "prepare", None):
        prepare(monkeypatch, folder)
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in case.make(folder)])
    output = " ".join("".join(capfd.readouterr()).split())
    assert (ended.value.code or 0) == case.status, output
    assert "Traceback" not in output
    for words in case.says:
        assert words in output
    case.after(folder)


def test_page_lists_every_case_and_no_other():
    text = PAGE.read_text(encoding="utf-8")
    assert text == rendered(text), "run `python -m tests.input_problems.page`"


def test_page_has_no_section_without_cases():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert sorted(titles) == sorted(areas())
