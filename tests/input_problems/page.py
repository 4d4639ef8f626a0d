"""docs/reference/input-problems.md and the areas it lists: each `*_cases.py` beside this file is one section.

`python -m tests.input_problems.page` rewrites the tables of the page from the cases.
"""

import importlib
import re
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/reference/input-problems.md"
HEAD = "| problem | what happens | the message says | exit status |\n|---|---|---|---|\n"


def areas() -> dict[str, ModuleType]:
    """The modules of cases by the title of their section, in the order of their files."""
    names = sorted(path.stem for path in HERE.glob("*_cases.py"))
    found = [importlib.import_module(f"tests.input_problems.{name}") for name in names]
    return {module.SECTION: module for module in found}


def table(module: ModuleType) -> str:
    """The table of one area."""
    return HEAD + "".join(f"{row}\n" for row in dict.fromkeys(case.row for case in module.CASES))


def written(text: str) -> str:
    """The page with the tables of today; a section that is missing is added at the end."""
    for title, module in areas().items():
        heading = f"## {title}\n"
        if heading not in text:
            text += f"\n{heading}\n{HEAD}"
        start = text.index(heading)
        stop = text.find("\n## ", start)
        section = text[start:] if stop < 0 else text[start:stop]
        before, after = re.split(r"^\|.*(?:\n\|.*)*\n?", section, maxsplit=1, flags=re.MULTILINE)
        text = text.replace(section, before + table(module) + after)
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
