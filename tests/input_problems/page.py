"""docs/reference/input-problems.md and its areas: each `*_cases.py` of this folder is one section.

`python -m tests.input_problems.page` rewrites the lists of the page from the cases.
"""

import importlib
import re
import textwrap
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/reference/input-problems.md"
WIDTH = 100


def areas() -> dict[str, ModuleType]:
    """The modules of cases by the title of their section, in the order of their files."""
    names = sorted(path.stem for path in HERE.glob("*_cases.py"))
    modules = [importlib.import_module(f"tests.input_problems.{name}") for name in names]
    return {module.SECTION: module for module in modules}


def entries(module: ModuleType) -> str:
    """The list of one area, an item for each distinct case."""
    items = dict.fromkeys(case.entry for case in module.CASES)
    return "".join(f"{textwrap.fill(item, WIDTH, subsequent_indent='  ', break_on_hyphens=False)}\n" for item in items)


def rendered(text: str) -> str:
    """The page with the current lists; a missing section is added at the end."""
    for title, module in areas().items():
        heading = f"## {title}\n"
        if heading not in text:
            text += f"\n{heading}\n- \n"
        start = text.index(heading)
        stop = text.find("\n## ", start)
        section = text[start:] if stop < 0 else text[start : stop + 1]
        before, after = re.split(r"^- .*(?:\n(?:- |  ).*)*\n?", section, maxsplit=1, flags=re.MULTILINE)
        text = text.replace(section, before + entries(module) + after)
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
