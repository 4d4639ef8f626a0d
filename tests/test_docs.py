"""The documentation names everything that a user can set, call, request or extend, and nothing that is not there."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from bench.__main__ import BENCHES
from exporters.automation.policy import ExportPolicy
from exporters.automation.triggers import TRIGGERS
from exporters.check.findings import FINDING_KINDS
from exporters.convert.annotation_policy import POLICIES
from exporters.formats import FORMATS
from exporters.tasks.table import TASK_FORMATS
from exporters.validate import ISSUE_KINDS
from labelloop.cli.main import create_cli
from labelloop.doctor import CHECKS
from labelloop.labeling.studio.values import GEOMETRIES
from labelloop.service.datasets import READERS
from labelloop.service.settings import Settings, describe_settings
from ml_backend.catalogue.entries import CATALOGUE
from ml_backend.heads import HEADS
from ml_backend.layouts import LAYOUTS
from ml_backend.layouts.layout_file import LayoutFile
from ml_backend.policy import FinetunePolicy, LearningPolicy
from ml_backend.predict.shapes import SHAPES
from ml_backend.segmentation.segmenters import SEGMENTERS
from ml_backend.server.app import create_app as create_ml
from ml_backend.training.onnx_decoders import DECODERS
from ml_backend.training.roi_features import POSTPROCESSED
from ml_backend.training.solvers import TRAINERS
from qc_webhooks.agreement import METRICS
from qc_webhooks.decision.routes import ROUTES
from qc_webhooks.policy import ConflictPolicy, ControlPolicy, LabelConflicts, Policy, ReviewRoute
from qc_webhooks.policy.guideline_rules import RULES, Rule
from qc_webhooks.server.app import create_app as create_qc
from qc_webhooks.statistics import STATISTICS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference"
TABLES = {
    "FORMATS": FORMATS,
    "TASK_FORMATS": TASK_FORMATS,
    "POLICIES": POLICIES,
    "TRIGGERS": TRIGGERS,
    "ISSUE_KINDS": ISSUE_KINDS,
    "FINDING_KINDS": FINDING_KINDS,
    "GEOMETRIES": GEOMETRIES,
    "LAYOUTS": LAYOUTS,
    "SEGMENTERS": SEGMENTERS,
    "CATALOGUE": CATALOGUE,
    "TRAINERS": TRAINERS,
    "DECODERS": DECODERS,
    "POSTPROCESSED": POSTPROCESSED,
    "READERS": READERS,
    "METRICS": METRICS,
    "ROUTES": ROUTES,
    "RULES": RULES,
    "STATISTICS": STATISTICS,
    "HEADS": HEADS,
    "SHAPES": SHAPES,
    "CHECKS": CHECKS,
}


def names_of_commands(app, path=()):
    """Every command as a user types it, such as `dataset list`."""
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        children = [child for child in command if not child.startswith("-")]
        if children:
            yield from names_of_commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


def endpoints_of(app):
    """Every endpoint as `METHOD /path`."""
    rules = app.url_map.iter_rules()
    return sorted({f"{method} {rule.rule}" for rule in rules for method in rule.methods - {"HEAD", "OPTIONS"}})


def metrics_of(app):
    """(name, type) of every metric that `/metrics` has."""
    text = app.test_client().get("/metrics").text
    found = re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE)
    return [(name, kind) for name, kind in found if not name.endswith("_created")]


def words(page: Path) -> str:
    """A page on one line."""
    return " ".join(page.read_text(encoding="utf-8").split())


def mentioned(page: Path) -> set[str]:
    """What a page sets in code: the pieces between backticks."""
    return set(re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("option", describe_settings(), ids=lambda option: option[0])
def test_every_setting_has_its_default_and_the_words_of_its_help(option):
    name, default, help_ = option
    shown = f" (`{default}`)" if default else ""
    page = words(REFERENCE / "settings.md")
    assert any(f"- `{name}`{shown}: {text}" in page for text in (help_, help_[0].lower() + help_[1:]))


def test_every_extra_is_described():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    page = (REFERENCE / "settings.md").read_text().partition("## Extras")[2]
    assert [extra for extra in extras if f"`{extra}`" not in page] == []


VARIABLE = re.compile(r"LABELLOOP_[A-Z0-9_]*[A-Z0-9]")


def test_no_page_names_a_setting_that_does_not_exist():
    known = {name for name, *_ in describe_settings()} | {"LABELLOOP_DEBUG"}
    benches = {name for file in (ROOT / "bench").glob("*.py") for name in VARIABLE.findall(file.read_text())}
    for page in PAGES:
        allowed = known | benches if "bench" in page.relative_to(ROOT).parts else known
        unknown = set(VARIABLE.findall(page.read_text(encoding="utf-8"))) - allowed
        assert not unknown, f"{page.relative_to(ROOT)} names {sorted(unknown)}"


def test_every_command_is_described():
    page = (REFERENCE / "commands.md").read_text()
    missing = [name for name in names_of_commands(create_cli()) if f"`labelloop {name}" not in page]
    assert not missing


@pytest.mark.parametrize("create", [create_ml, create_qc], ids=["ML backend", "QC"])
def test_every_endpoint_and_metric_is_described(create, tmp_path):
    app, page = create(Settings(home=tmp_path)), REFERENCE / "endpoints.md"
    assert [endpoint for endpoint in endpoints_of(app) if endpoint not in mentioned(page)] == []
    rows = [f"| `{name}` | {kind}, " for name, kind in metrics_of(app)]
    assert [row for row in rows if row not in page.read_text()] == []


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_of_a_table_is_described(table):
    code = set().union(*(mentioned(page) for page in REFERENCE.glob("*.md")))
    assert table in code
    missing = [str(key) for key in TABLES[table] if str(key) not in code]
    assert not missing, f"no page of docs/reference names {missing} of {table}"


def test_pages_of_findings_and_issues_have_the_words_of_the_tables():
    findings = [
        f"- `{key}` ({kind.severity}): {kind.title}. Effect: {kind.effect}. Fix: {kind.fix}."
        for key, kind in FINDING_KINDS.items()
    ]
    assert [entry for entry in findings if entry not in words(REFERENCE / "findings.md")] == []
    issues = [f"- `{key}`: {kind.title}. Effect: {kind.effect}. Fix: {kind.fix}" for key, kind in ISSUE_KINDS.items()]
    assert [entry for entry in issues if entry not in words(REFERENCE / "issues.md")] == []


def shown_default(value) -> str:
    """A default as a cell of a table shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'`"{value}"`'
    return "none" if value in (None, (), MISSING) else f"{value:g}" if isinstance(value, float) else str(value)


# Keys whose default the page gives in words: a table of its own, all labels, a list.
IN_WORDS = {"conflicts", "controls", "dispute", "labels", "others", "control", "rename", "then", "train"}


POLICY_PAGES = {
    **dict.fromkeys((Policy, ConflictPolicy, LabelConflicts, ControlPolicy, ReviewRoute, Rule), "policy.md"),
    **dict.fromkeys((LearningPolicy, FinetunePolicy), "learning-policy.md"),
    ExportPolicy: "export-policy.md",
}


@pytest.mark.parametrize("policy", POLICY_PAGES)
def test_every_key_of_a_policy_is_described_with_its_default(policy):
    page = (REFERENCE / POLICY_PAGES[policy]).read_text()
    assert [field for field in policy.__dataclass_fields__ if f"`{field}`" not in page and field != "train"] == []
    rows = [
        f"| `{field.name}` | {shown_default(field.default)} | "
        for field in fields(policy)
        if field.name not in IN_WORDS and policy is not LabelConflicts
    ]
    assert [row for row in rows if row not in page] == []


def texts_of(kind) -> set[str]:
    """The words that a type of a layout file accepts."""
    if get_origin(kind) is Literal:
        return {word for word in get_args(kind) if isinstance(word, str) and word}
    return set().union(*map(texts_of, get_args(kind)))


@pytest.mark.parametrize("table", sorted(set(LayoutFile.__struct_fields__) - {"format", "layout"}))
def test_every_key_and_word_of_a_layout_file_is_described(table):
    page = (REFERENCE / "layout-file.md").read_text()
    kinds = [kind for kind in get_args(get_type_hints(LayoutFile)[table]) if hasattr(kind, "__struct_fields__")]
    for kind in kinds:
        hints = get_type_hints(kind)
        wanted = {*hints, *set().union(*map(texts_of, hints.values()))}
        assert [word for word in sorted(wanted) if f"`{word}`" not in page and f"{table}.{word}" not in page] == []


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower().strip() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def is_there(page: Path, target: str) -> bool:
    """Whether a link of a page leads to a file, and to a heading of it where it names one."""
    file, _, heading = target.partition("#")
    aim = page.parent / file if file else page
    return aim.exists() and (not heading or heading in headings(aim))


def links(page: Path) -> list[str]:
    """Where a page links to, inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", prose(page), flags=re.MULTILINE)
    return [inline or below for inline, below in targets if "://" not in inline + below]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert [target for target in links(page) if not is_there(page, target)] == []


def linked_files(page: Path) -> set[Path]:
    return {(page.parent / target.partition("#")[0]).resolve() for target in links(page)}


@pytest.mark.parametrize("folder", ["docs", "bench"])
def test_index_of_a_folder_links_to_each_of_its_pages(folder):
    index = ROOT / folder / "README.md"
    pages = {page for page in (ROOT / folder).rglob("*.md") if page != index}
    linked = linked_files(index)
    assert [str(page.relative_to(ROOT)) for page in sorted(pages - linked)] == []


def test_readme_leads_to_every_page_at_the_top():
    readme = ROOT / "README.md"
    near = linked_files(readme)
    near |= {file for page in near if page.suffix == ".md" for file in linked_files(page)}
    assert [page.name for page in ROOT.glob("*.md") if page != readme and page not in near] == []


def test_index_of_benches_names_each_of_them():
    page = (ROOT / "bench" / "README.md").read_text()
    assert [name for name in BENCHES if f"- `{name}`: " not in page] == []


NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")


def test_figures_of_the_readme_are_those_of_the_benches():
    section = (ROOT / "README.md").read_text().partition("## Measured against others")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if "bench/results/" in line]
    assert len(rows) >= 10
    for *_, ours, theirs, link in rows:
        page = ROOT / re.search(r"\((bench/results/\w+\.md)", link)[1]
        held = NUMBER.findall(page.read_text())
        missing = [number for number in NUMBER.findall(f"{ours} {theirs}") if number not in held]
        assert not missing, f"README.md gives {missing}, which {page.name} does not hold"


SOURCE_FILE = re.compile(r"(?:labelloop|ml_backend|qc_webhooks|exporters|tests|bench)/[\w/.-]+\.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_source_files_that_a_page_names_exist(page):
    missing = [name for name in mentioned(page) if SOURCE_FILE.fullmatch(name) and not (ROOT / name).is_file()]
    assert not missing


def test_stages_of_the_architecture_are_those_of_the_contracts():
    text = words(ROOT / "docs" / "why" / "architecture.md")
    shown = re.findall(r"- `([\w/]+)/`: ([\w, >]+?)(?= - `| ## )", text)
    assert len(shown) == 4
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {contract["containers"][0]: contract["layers"] for contract in contracts if "containers" in contract}
    for package, stages in shown:
        allowed = [set(layer.split(" | ")) for layer in layers[package.replace("/", ".")]]
        for names, layer in zip(stages.split(" > "), allowed, strict=False):
            assert set(names.strip().split(", ")) <= layer


# Names of other programs' own files that pages quote.
FOREIGN = {"ann_file", "cls_8", "date_captured", "img_path", "kps_32"}


def test_names_that_pages_quote_are_in_the_code():
    """Keys, columns, log events, functions: what is set in code as one word with an underscore."""
    folders = ("labelloop", "ml_backend", "qc_webhooks", "exporters", "bench")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in {".py", ".jinja"}]
    known = FOREIGN.union(*(re.findall(r"\w*_\w*", file.read_text(encoding="utf-8")) for file in files))
    # Label Studio's templates have names of their own, and the page of the house names what was removed.
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in {"image-templates.md", "house.md"}]
    quoted = {
        (name, page.name)
        for page in pages
        for name in mentioned(page)
        if re.fullmatch(r"(?!labelloop_)[a-z]+(_[a-z0-9]+)+", name)
    }
    assert len(quoted) > 200
    assert sorted(item for item in quoted if item[0] not in known) == []


def test_every_term_of_the_glossary_has_a_source_file():
    entries = re.split(r"\n(?=- \*\*)", (REFERENCE / "glossary.md").read_text(encoding="utf-8"))[1:]
    assert len(entries) >= 80
    assert [entry for entry in entries if not SOURCE_FILE.search(entry)] == []
