"""Connecting a project: what is made, repaired and left alone; twice changes nothing; refusals in plain words."""

import copy
import re

import pytest

from labelloop.service.settings import Settings
from labelloop.service.studio import StudioRefused
from qc_webhooks.cli.qc import project_status, recheck_project
from qc_webhooks.errors import PolicyError, QualityControlError, WebhookHostRefused
from qc_webhooks.events import SUBSCRIBED_ACTIONS
from qc_webhooks.store.projects import ProjectStore
from qc_webhooks.studio.connect import connect, show_note
from qc_webhooks.studio.data_manager_tabs import TABS, ensure_tabs, tab_data
from qc_webhooks.studio.webhook import is_single_label

PROJECT = 7
URL = "http://qc.internal:9091/webhook"


@pytest.fixture
def admin(fake_label_studio):
    """A project that is not connected yet."""
    fake_label_studio.put_project(PROJECT, label_config="<View><Image/></View>")
    return fake_label_studio


@pytest.fixture
def fields(admin):
    """The project's fields."""
    return admin.projects_by_id[PROJECT]


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path, webhook_secret="s3cret", qc_url="http://qc.internal:9091")


def test_connecting_makes_everything_and_twice_changes_nothing(admin, fields, settings, engine):
    changes = connect(admin, PROJECT, settings, engine)
    assert all(change.done != change.choice for change in changes)
    assert [change.choice for change in changes].count(True) == 2, "how many annotate, and the note above the photo"
    (hook,) = admin.webhooks_by_id.values()
    assert hook["url"] == URL
    assert hook["headers"] == {"X-Labelloop-Secret": "s3cret"}
    assert set(hook["actions"]) == set(SUBSCRIBED_ACTIONS)
    assert [tab["data"]["title"] for tab in admin.views_by_id.values()] == ["Default", *TABS]
    assert fields["maximum_annotations"] == 1
    assert [item.project for item in ProjectStore(engine).all()] == [PROJECT]
    admin.calls.clear()
    assert not any(change.done for change in connect(admin, PROJECT, settings, engine))
    assert admin.writes == []


@pytest.mark.parametrize(
    "damage",
    [
        {"headers": {}},
        {"headers": {"X-Labelloop-Secret": "old"}},
        {"actions": []},
        {"send_for_all_actions": True, "actions": []},
        {"send_payload": False},
        {"is_active": False},
    ],
)
def test_a_damaged_webhook_is_repaired(admin, settings, engine, damage):
    connect(admin, PROJECT, settings, engine)
    healthy = copy.deepcopy(admin.webhooks_by_id[1])
    admin.webhooks_by_id[1] |= damage
    assert [change.done for change in connect(admin, PROJECT, settings, engine)][-1]
    assert admin.webhooks_by_id[1] | {"actions": sorted(admin.webhooks_by_id[1]["actions"])} == healthy | {
        "actions": sorted(SUBSCRIBED_ACTIONS)
    }


def test_a_webhook_keeps_the_headers_that_somebody_added(admin, settings, engine):
    connect(admin, PROJECT, settings, engine)
    admin.webhooks_by_id[1]["headers"] = {"X-Team": "blue"}
    connect(admin, PROJECT, settings, engine)
    assert admin.webhooks_by_id[1]["headers"] == {"X-Team": "blue", "X-Labelloop-Secret": "s3cret"}


def test_copies_of_our_webhook_are_removed_and_others_stay(admin, settings, engine):
    for url in (URL, URL, "http://other.example/hook"):
        admin.add_webhook(PROJECT, url, actions=SUBSCRIBED_ACTIONS, headers={"X-Labelloop-Secret": "s3cret"})
    connect(admin, PROJECT, settings, engine)
    assert sorted(hook["url"] for hook in admin.webhooks_by_id.values()) == ["http://other.example/hook", URL]


def test_basic_auth_goes_along_where_there_is_no_secret(admin, tmp_path, engine):
    settings = Settings(home=tmp_path, qc_url="http://qc.internal", basic_auth_user="u", basic_auth_password="p")
    connect(admin, PROJECT, settings, engine)
    assert admin.webhooks_by_id[1]["headers"] == {"Authorization": "Basic dTpw"}


def test_note_is_added_only_on_request(admin, fields, settings, engine):
    (offer,) = [change for change in connect(admin, 7, settings, engine) if "--note" in change.what]
    assert offer.choice
    assert not offer.done
    assert fields["label_config"] == "<View><Image/></View>"
    assert show_note(admin, 7).done
    assert fields["label_config"].startswith('<View>\n  <Header value="$qc_note"/>')
    assert not show_note(admin, 7).done
    assert not [change for change in connect(admin, 7, settings, engine) if "--note" in change.what]


def test_an_interface_without_room_for_the_note_is_refused(admin, fields):
    fields["label_config"] = "<Image/>"
    with pytest.raises(QualityControlError, match="no <View>"):
        show_note(admin, 7)


def test_more_annotators_than_the_policy_wants_stay(admin, fields, settings, engine):
    fields["maximum_annotations"] = 5
    connect(admin, PROJECT, settings, engine)
    assert fields["maximum_annotations"] == 5


def test_further_annotators_need_the_policy(admin, fields, settings, engine):
    messages = [change.what for change in connect(admin, PROJECT, settings, engine)]
    assert fields["maximum_annotations"] == 1
    assert "set_maximum_annotations" in messages[0]
    (settings.home / "qc").mkdir(parents=True)
    (settings.home / "qc" / "policy.toml").write_text("set_maximum_annotations = true\n")
    assert connect(admin, PROJECT, settings, engine)[0].done
    assert fields["maximum_annotations"] == 2


@pytest.mark.parametrize(
    ("url", "refusal", "message"),
    [
        ("http://qc:9091", None, "its host has no dot.*qc.internal"),
        ("http://127.0.0.1:9091", StudioRefused("POST", 403, "reserved network"), "bans by default.*169.254.0.0/16"),
        ("http://qc.internal", StudioRefused("POST", 400, "Enter a valid URL."), "Enter a valid URL"),
    ],
)
def test_refused_address_has_a_fix_and_polling_continues(admin, tmp_path, engine, url, refusal, message):
    admin.refuse |= {"add_webhook": refusal} if refusal else {}
    with pytest.raises(WebhookHostRefused, match=f"{message}.*poller finds every change"):
        connect(admin, PROJECT, Settings(home=tmp_path, qc_url=url), engine)
    assert [item.project for item in ProjectStore(engine).all()] == [PROJECT]
    assert len(admin.views_by_id) == 1 + len(TABS)


@pytest.mark.parametrize(
    ("url", "single"),
    [
        ("http://qc:9091/webhook", True),
        ("http://localhost:9091", False),
        ("http://127.0.0.1", False),
        ("http://[::1]:9091", False),
        ("http://qc.internal", False),
    ],
)
def test_single_labels(url, single):
    assert is_single_label(url) == single


@pytest.mark.parametrize(
    ("title", "item", "order"),
    [
        ("QC: disputed", ("qc_status", "equal", "String", "disputed"), "tasks:data.qc_agreement"),
        ("QC: to review", ("qc_review", "equal", "String", "yes"), "tasks:data.qc_agreement"),
        ("QC: model doubts", ("qc_model_score", "greater", "Number", 0), "-tasks:data.qc_model_score"),
    ],
)
def test_tabs_filter_by_flat_keys_and_sort_as_numbers(title, item, order):
    data, (key, *rest) = tab_data(title), item
    [result] = data["filters"]["items"]
    assert list(result.values()) == [f"filter:tasks:data.{key}", *rest]
    assert data["ordering"] == [order]
    assert data["columnsDisplayType"] == {order.removeprefix("-"): "Number"}


def test_the_project_still_opens_on_all_its_tasks(admin):
    first = next(change.what for change in ensure_tabs(admin, PROJECT))
    assert first == 'tab "Default" with all tasks'
    opened = admin.views_by_id[1]["data"]
    assert (opened["title"], opened["filters"]["items"], opened["ordering"]) == ("Default", [], [])
    assert "tasks:predictions_results" in opened["hiddenColumns"]["explore"]


def test_a_tab_that_is_there_already_stays_the_first(admin):
    admin.add_view(PROJECT, {"title": "Mine", "filters": {"conjunction": "and", "items": []}})
    ensure_tabs(admin, PROJECT)
    assert [tab["data"]["title"] for tab in admin.views_by_id.values()] == ["Mine", *TABS]


def test_the_note_has_room_in_our_tabs():
    for title in TABS:
        data = tab_data(title)
        hidden = data["hiddenColumns"]["explore"]
        assert {"tasks:completed_at", "tasks:cancelled_annotations", "tasks:total_predictions"} <= set(hidden)
        assert not {"tasks:data.qc_note", "tasks:data.qc_agreement", "tasks:id"} & set(hidden)
        assert not {f"tasks:data.{key}" for key in ("qc_model_note", "qc_model_score")} & set(hidden)
        assert data["columnsWidth"][f"tasks:data.{TABS[title].note}"] > 500


def test_a_dropped_tab_comes_back_once(admin):
    ensure_tabs(admin, PROJECT)
    del admin.views_by_id[2]
    assert [change.done for change in ensure_tabs(admin, PROJECT)] == [True, *[False] * (len(TABS) - 1)]
    assert len(admin.views_by_id) == 1 + len(TABS)


def test_dropping_all_tabs_brings_the_default_back_too(admin):
    ensure_tabs(admin, PROJECT)
    admin.views_by_id.clear()
    ensure_tabs(admin, PROJECT)
    assert [tab["data"]["title"] for tab in admin.views_by_id.values()] == ["Default", *TABS]


def test_changes_to_a_tab_stay_except_its_filter(admin):
    ensure_tabs(admin, PROJECT)
    admin.views_by_id[2]["data"] |= {"ordering": ["tasks:id"], "columnsWidth": {"tasks:id": 50}}
    # the browser writes the filter back with another type: that is the same filter
    admin.views_by_id[2]["data"]["filters"]["items"][0]["type"] = "Unknown"
    assert not any(change.done for change in ensure_tabs(admin, PROJECT))
    admin.views_by_id[2]["data"]["filters"]["items"] = []
    assert [change.done for change in ensure_tabs(admin, PROJECT)] == [True, *[False] * (len(TABS) - 1)]
    assert admin.views_by_id[2]["data"]["ordering"] == ["tasks:id"]


def test_status_counts_verdicts_and_asks_to_connect_first(studio, box, check, settings, engine):
    with pytest.raises(QualityControlError, match="labelloop connect 7"):
        project_status(PROJECT, settings, engine)
    ProjectStore(engine).add(PROJECT)
    task = studio.add_task()
    studio.annotate(task, 1, [box(0)])
    studio.annotate(task, 2, [box(60)])
    check(task)
    result = project_status(PROJECT, settings, engine)
    assert (result.outcomes, result.to_review) == ({"disputed": 1}, 0)
    assert result.writes == {"one_more_annotator+flag": 1}


def test_recheck_asks_for_every_task_each_time(studio, box, settings, engine):
    for _ in range(3):
        studio.annotate(studio.add_task(), 1, [box()])
    studio.add_task()
    assert recheck_project(PROJECT, settings, studio, engine) == 3
    assert recheck_project(PROJECT, settings, studio, engine) == 3


@pytest.mark.parametrize("line", ["agrement = 0.7", "[conflicts.labels.Unicorn]\nmin_size = 5"])
def test_recheck_refuses_a_policy_by_which_nothing_would_be_judged(line, studio, settings, engine):
    path = settings.home / "qc" / str(PROJECT) / "policy.toml"
    path.parent.mkdir(parents=True)
    path.write_text(line)
    with pytest.raises(PolicyError, match=re.escape(str(path))):
        recheck_project(PROJECT, settings, studio, engine)


def test_project_that_is_not_connected_gets_the_command_that_connects_it(engine):
    with pytest.raises(QualityControlError) as caught:
        ProjectStore(engine).require(99)
    assert "labelloop connect 99" in caught.value.fix
