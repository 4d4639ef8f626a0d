"""A task sent back in stock Label Studio: its annotator finds it with the comment, redoes it; the reviewer accepts."""

import pytest

from tests.system.browser_fixtures import log_in, screenshot
from tests.system.loop_fixtures import eventually

pytestmark = pytest.mark.system

COMMENT = "Mark the front wheel too, please."


def drawn(x, y, width, height, label="Motorbike"):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": f"r{x}", "from_name": "objects", "to_name": "image", "type": "rectanglelabels", "original_width": 512,
        "original_height": 512, "value": value,
    }  # fmt: skip


def test_a_task_is_sent_back_redone_and_accepted(loop, project, people, label_studio, page, tmp_path):
    admin, ben = people["admin"], people["ben"]
    policy = loop.home / "qc" / str(project) / "policy.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text("max_annotators = 2\n")
    number = admin.get("/api/tasks/", project=project)["tasks"][0]["id"]

    def task():
        asked = {"project": project, "fields": "all", "resolve_uri": "false", "review": "true"}
        return next(item for item in admin.get("/api/tasks/", **asked)["tasks"] if item["id"] == number)

    def state():
        return task()["data"].get("qc_sent_back")

    people["anna"].submit(number, [drawn(12, 22, 60, 52), drawn(74, 66, 20, 27)])
    own = ben.submit(number, [drawn(13, 22, 60, 52)])["id"]
    eventually(lambda: task()["data"].get("qc_review") == "yes", what="the dispute about one missing object")
    assert task()["data"]["qc_status"] == "disputed"

    said = loop.command("qc", "send-back", str(number), "--annotator", "ben@example.com", "--comment", COMMENT).stdout
    assert "Sent back: ben@example.com" in said
    assert (state(), task()["data"]["qc_sent_to"]) == ("sent back", "ben@example.com")
    views = admin.get("/api/dm/views/", project=project)
    (tab,) = [view["id"] for view in views if view["data"]["title"] == "Sent back: ben@example.com"]
    assert [item["id"] for item in admin.get("/api/tasks/", view=tab)["tasks"]] == [number]

    log_in(page, label_studio, "ben@example.com")
    page.goto(f"{label_studio.url}/projects/{project}/data?tab={tab}")
    page.get_by_text(COMMENT).first.wait_for()
    page.wait_for_timeout(1500)
    screenshot(page, "sent-back-tab.png", tmp_path)
    page.goto(f"{label_studio.url}/projects/{project}/data?tab={tab}&task={number}")
    page.get_by_text(f"Sent back to ben@example.com: {COMMENT}").first.wait_for()
    page.locator("[class*=outliner-item__title]").first.wait_for()
    page.wait_for_timeout(1500)  # the photograph fades in
    screenshot(page, "sent-back-task.png", tmp_path)
    page.keyboard.press("3")  # the label Motorbike
    canvas = page.locator("canvas").first.bounding_box()
    left, top = canvas["x"] + 0.74 * canvas["width"], canvas["y"] + 0.6 * canvas["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 60, top + 60, steps=5)
    page.mouse.up()
    page.locator('button:has-text("Update")').first.click()

    eventually(lambda: state() == "redone", what="the redone annotation")
    assert task()["data"]["qc_review"] == "yes"
    (redone,) = [item for item in task()["annotations"] if item["id"] == own]
    assert len(redone["result"]) == 2
    eventually(
        lambda: all(
            "Sent back: ben" not in view["data"]["title"] for view in admin.get("/api/dm/views/", project=project)
        ),
        what="the end of the annotator's tab",
    )

    loop.command("qc", "send-back", str(number), "--accept")
    assert state() == "accepted"
    assert task()["data"]["qc_review"] == "yes", "the new box is not Anna's: the dispute is still to be decided"
    loop.command("qc", "undo", str(project), "--task", str(number), "--last", "2")
    assert state() == "redone"
