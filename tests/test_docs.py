"""The documentation names everything that a user can set, call, request or extend, and nothing that is not there."""

import re
from pathlib import Path

import pytest

from exporters.automation.policy import ExportPolicy
from exporters.automation.triggers import TRIGGERS
from exporters.choose import POLICIES
from exporters.formats import FORMATS
from exporters.validate import FLAWS
from labelloop.cli import create_cli
from labelloop.doctor import CHECKS
from labelloop.labeling.values import GEOMETRIES
from labelloop.service.datasets import READERS
from labelloop.service.settings import Settings, describe_settings
from ml_backend.app import create_app as create_ml
from ml_backend.catalogue import CATALOGUE
from ml_backend.layouts import LAYOUTS
from ml_backend.shapes import SHAPES
from ml_backend.smart.segmenters import SEGMENTERS
from ml_backend.standard import STANDARD
from ml_backend.trainers import TRAINERS
from qc_webhooks.agreement import METRICS
from qc_webhooks.app import create_app as create_qc
from qc_webhooks.policy import ControlPolicy, Policy, ReviewRoute
from qc_webhooks.routing import ROUTES
from qc_webhooks.rules import RULES, Rule
from qc_webhooks.statistics import STATISTICS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference"
TABLES = {
    "FORMATS": FORMATS,
    "POLICIES": POLICIES,
    "TRIGGERS": TRIGGERS,
    "FLAWS": FLAWS,
    "GEOMETRIES": GEOMETRIES,
    "LAYOUTS": LAYOUTS,
    "SEGMENTERS": SEGMENTERS,
    "CATALOGUE": CATALOGUE,
    "TRAINERS": TRAINERS,
    "STANDARD": STANDARD,
    "READERS": READERS,
    "METRICS": METRICS,
    "ROUTES": ROUTES,
    "RULES": RULES,
    "STATISTICS": STATISTICS,
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


def rules_of(app):
    return sorted({rule.rule for rule in app.url_map.iter_rules()})


def mentioned(page: Path) -> set[str]:
    """What a page sets in code: the pieces between backticks."""
    return set(re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("option", describe_settings(), ids=lambda option: option[0])
def test_every_setting_is_described_with_its_default(option):
    name, default, _ = option
    rows = [line for line in (REFERENCE / "settings.md").read_text().splitlines() if f"`{name}`" in line]
    assert rows, f"docs/reference/settings.md does not name {name}; run `python docs/settings_table.py`"
    assert str(default) in rows[0]


def test_no_page_names_a_setting_that_does_not_exist():
    known = {name for name, *_ in describe_settings()} | {"LABELLOOP_DEBUG"}
    for page in PAGES:
        unknown = set(re.findall(r"LABELLOOP_[A-Z0-9_]*[A-Z0-9]", page.read_text(encoding="utf-8"))) - known
        assert not unknown, f"{page.relative_to(ROOT)} names {sorted(unknown)}"


def test_every_command_is_described():
    page = (REFERENCE / "commands.md").read_text()
    missing = [name for name in names_of_commands(create_cli()) if f"`labelloop {name}" not in page]
    assert not missing


@pytest.mark.parametrize("create", [create_ml, create_qc], ids=["ML backend", "QC"])
def test_every_endpoint_is_described(create, tmp_path):
    app = create(Settings(home=tmp_path))
    missing = [rule for rule in rules_of(app) if rule not in mentioned(REFERENCE / "endpoints.md")]
    assert not missing


@pytest.mark.parametrize("table", TABLES)
def test_every_entry_of_a_table_is_described(table):
    code = set().union(*(mentioned(page) for page in REFERENCE.glob("*.md")))
    assert table in code
    missing = [str(key) for key in TABLES[table] if str(key) not in code]
    assert not missing, f"no page of docs/reference names {missing} of {table}"


@pytest.mark.parametrize("policy", [Policy, ControlPolicy, ReviewRoute, Rule, ExportPolicy])
def test_every_key_of_a_policy_is_described(policy):
    missing = [field for field in policy.__dataclass_fields__ if field not in mentioned(REFERENCE / "policy.md")]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    broken = [target for target in targets if not (page.parent / target.partition("#")[0]).exists()]
    assert not broken
