"""What an annotator sees: a task of the label stream opens in Chromium with the model's boxes drawn."""

import pytest

from tests.system.browser_fixtures import log_in, screenshot
from tests.system.loop_fixtures import Person

pytestmark = pytest.mark.system


def test_an_annotator_sees_the_pre_labels_drawn(page, label_studio, loop, project, tmp_path):
    email = "dora@example.com"
    token, number = label_studio.user(email)
    log_in(page, label_studio, email)
    page.goto(f"{label_studio.url}/projects/{project}/data?labeling=1")
    person = Person(label_studio.url, token, number)
    served = person.next_task(project)
    person.close()
    boxes = [item for item in served["predictions"][0]["result"] if item["type"] == "rectanglelabels"]
    assert boxes
    try:
        page.locator('button:has-text("Submit")').first.wait_for()
        page.locator("[class*=outliner-item__title]").first.wait_for()
        page.wait_for_timeout(1500)  # the photograph fades in
    finally:
        shot = screenshot(page, "prelabels.png", tmp_path)
    shown = page.locator("[class*=outliner-item__title]").all_inner_texts()
    wanted = [label for item in boxes for label in item["value"]["rectanglelabels"]]
    assert sorted(text.strip() for text in shown if text.strip() in {"Person", "Cat", "Motorbike"}) == sorted(wanted)
    assert shot.stat().st_size > 20_000
