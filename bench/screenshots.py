"""`python -m bench.screenshots`: the pictures of the documentation, from the demo of `labelloop up` at work.

Two annotators and the admin work through the demo over Label Studio's API: one is right, the others name some toys
wrongly. Then Chromium takes each picture of `docs/images/` that `PICTURES` names.
"""

import io
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Page

from bench.demo import SUBJECTS
from bench.stack import ROOT, environment, running_stack
from labelloop.service.settings import Settings
from labelloop.stack.accounts import ADMIN, ANNOTATORS, StackUser, log_in
from labelloop.stack.demo_images import toys_on
from labelloop.stack.environment import read_env
from labelloop.stack.state import read_state
from tests.system.browser_fixtures import chromium_page

Box = tuple[float, float, float, float]
FOLDER = ROOT / "docs" / "images"
SIZE = {"width": 1366, "height": 768}
WIDTH, COLOURS, MOST_BYTES = 1100, (256, 192, 128, 96, 64), 150_000
ANNA, BEN = ANNOTATORS
# Who submits how many tasks, in turn.
TURNS = ((ANNA, 10), (BEN, 4), (ADMIN, 2), (ANNA, 10))
# Who calls a beach ball what: Ben in every second task, the admin, who is asked about Ben's disputes, in each.
WRONG = {BEN: "Balloon", ADMIN: "Parcel"}
# Nobody draws to the pixel: standard deviation of a side, as a share of the image.
UNSTEADY = 0.003
# A pre-label that overlaps a toy by this IoU is kept as it is.
RIGHT = 0.75
# Seconds between two submits, in which a version is learned; without a new version; of waiting for one.
PAUSE_S, SETTLED_S, WAIT_S = 5.0, 25.0, 300.0


@dataclass(frozen=True)
class Demo:
    """The running demo.

    Attributes:
        settings: Its settings.
        project: The project with boxes.
        export: Folder of its exported data set.
    """

    settings: Settings
    project: int
    export: Path

    @property
    def secrets(self) -> Mapping[str, str]:
        """What `settings.env` holds."""
        return read_env(self.settings.home)


def prelabels(page: Page, demo: Demo) -> None:
    """The label stream of stock Label Studio with the boxes of a learned version."""
    open_studio(page, demo, ANNA, "labeling=1")


def adjudication(page: Page, demo: Demo) -> None:
    """A task for a reviewer in stock Label Studio: the reason in words, each annotator's work, the consensus."""
    open_dashboard(page, demo, "disputes?state=review")
    task = page.locator("[data-open]").first.inner_text().removeprefix("Task ")
    open_studio(page, demo, ADMIN, f"task={task}")


def dashboard(page: Page, demo: Demo) -> None:
    """The list of disputes: who drew what, and why they differ, in words."""
    open_dashboard(page, demo, "disputes")


def learning(page: Page, demo: Demo) -> None:
    """The learning page: the curve of the versions, and the edits of the annotators."""
    page.goto((demo.settings.home / "learning.html").as_uri())


def report(page: Page, demo: Demo) -> None:
    """The report of the exported version, from its classes on."""
    page.goto((demo.export / "latest" / "report.html").as_uri())
    page.get_by_role("heading", name="Samples").evaluate("each => each.scrollIntoView()")


PICTURES: Mapping[str, Callable[[Page, Demo], None]] = {
    picture.__name__: picture for picture in (prelabels, adjudication, dashboard, learning, report)
}


def open_studio(page: Page, demo: Demo, who: StackUser, query: str) -> None:
    """Log in to Label Studio and open the project's tasks."""
    url, account = demo.secrets["LABELLOOP_LABEL_STUDIO_URL"], who.account(demo.settings.home)
    page.context.clear_cookies()
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", account.email)
    page.fill("input[name=password]", account.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda address: "/user/login" not in address)
    page.goto(f"{url}/projects/{demo.project}/data?{query}")
    page.locator("[class*=outliner-item__title]").first.wait_for()
    page.wait_for_timeout(2000)  # the photo fades in


def open_dashboard(page: Page, demo: Demo, path: str) -> None:
    """Log in to the dashboard and open one of the project's pages."""
    url = f"{demo.secrets['LABELLOOP_QC_URL']}/dashboard"
    page.context.clear_cookies()
    page.goto(f"{url}/login")
    page.fill("#password", demo.secrets["LABELLOOP_DASHBOARD_PASSWORD"])
    page.click("main button")
    page.wait_for_url(lambda address: "/login" not in address)
    page.goto(f"{url}/{demo.project}/{path}")
    page.wait_for_load_state("networkidle")


def main() -> None:
    """Take the pictures."""
    with running_stack() as settings:
        demo = Demo(settings, read_state(settings.home).projects["demo"].id, settings.home / "bucket")
        chance = random.Random(3)
        for who, tasks in TURNS:
            annotate(demo, who, tasks, chance)
            until_learned(demo)
        number, home = str(demo.project), environment(settings.home)
        for command in (
            f"learn report {number} --out {settings.home}/learning.html",
            f"export {number} --format coco,voc,yolo-detect --copy-images --disputed in --to {demo.export}",
        ):
            subprocess.run([sys.executable, "-m", "labelloop.cli.main", *command.split()], env=home, check=True)
        with chromium_page(**SIZE) as page:
            for name, show in PICTURES.items():
                show(page, demo)
                (FOLDER / f"{name}.png").write_bytes(reduced(page.screenshot()))
                print(f"{FOLDER / name}.png: {(FOLDER / f'{name}.png').stat().st_size:,} bytes")


def annotate(demo: Demo, who: StackUser, tasks: int, chance: random.Random) -> None:
    """Submit the next tasks of an annotator: the pre-labels of the photo's subject, and the toys."""
    with log_in(demo.secrets["LABELLOOP_LABEL_STUDIO_URL"], who.account(demo.settings.home)) as session:
        session.headers["X-CSRFToken"] = session.cookies["csrftoken"]
        for number in range(tasks):
            next_task = f"/api/dm/actions?id=next_task&project={demo.project}"
            task = asked(session, next_task, {"project": str(demo.project)})
            prediction = task["predictions"][0]
            body = {
                "result": drawn(demo, task, chance, wrong=WRONG.get(who, "") if who == ADMIN or number % 2 else ""),
                "lead_time": chance.uniform(8, 40),
                "parent_prediction": prediction["id"],
            }
            asked(session, f"/api/tasks/{task['id']}/annotations/", body)
            time.sleep(PAUSE_S)


def drawn(demo: Demo, task: dict[str, Any], chance: random.Random, *, wrong: str) -> list[dict[str, Any]]:
    """The result that an annotator submits; `wrong` is what a beach ball is called, empty for its name."""
    name = task["data"]["image"].rpartition("/")[2].partition("-")[2]
    with Image.open(Path(demo.settings.home, "photos", name)) as image:
        width, height = image.size
    subject = SUBJECTS[name.rpartition("-")[0]][0]
    predicted = task["predictions"][0]["result"]
    result = [item for item in predicted if subject in item["value"]["rectanglelabels"]]
    for toy in toys_on(name, (width, height)):
        label = wrong if wrong and toy.label == "Beach ball" else toy.label
        right = [item for item in predicted if label in item["value"]["rectanglelabels"]]
        right = [item for item in right if overlap(corners(item, width, height), toy.box) >= RIGHT]
        if right:
            result.append(right[0])
            continue
        left, top, right_side, bottom = (side + chance.gauss(0, UNSTEADY * width) for side in toy.box)
        value = {
            "x": 100 * left / width, "y": 100 * top / height, "rotation": 0,
            "width": 100 * (right_side - left) / width, "height": 100 * (bottom - top) / height,
            "rectanglelabels": [label],
        }  # fmt: skip
        result.append({"id": toy.label, "from_name": "objects", "to_name": "image", "type": "rectanglelabels",
                       "original_width": width, "original_height": height, "image_rotation": 0,
                       "value": value})  # fmt: skip
    return result


def corners(item: dict[str, Any], width: int, height: int) -> Box:
    """left, top, right, bottom of a result in pixels."""
    value = item["value"]
    left, top = value["x"] * width / 100, value["y"] * height / 100
    return left, top, left + value["width"] * width / 100, top + value["height"] * height / 100


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    wide, high = (min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]) for axis in (0, 1))
    both = max(wide, 0) * max(high, 0)
    return both / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - both)


def asked(session: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    answer: dict[str, Any] = session.post(path, json=body).raise_for_status().json()
    return answer


def until_learned(demo: Demo) -> None:
    """Wait until Label Studio names a learned version, and no newer one comes for a while."""
    name, since, end = "", time.monotonic(), time.monotonic() + WAIT_S
    with log_in(demo.secrets["LABELLOOP_LABEL_STUDIO_URL"], ANNOTATORS[0].account(demo.settings.home)) as session:
        while time.monotonic() < min(end, since + SETTLED_S) or not name.startswith("learned-"):
            now = str(session.get(f"/api/projects/{demo.project}/").raise_for_status().json()["model_version"])
            name, since = now, since if now == name else time.monotonic()
            if time.monotonic() > end:
                raise SystemExit(f"No version was learned within {WAIT_S:.0f} s.")
            time.sleep(1)


def reduced(png: bytes) -> bytes:
    """A picture of `WIDTH`, with as many colours as `MOST_BYTES` allow.

    Raises:
        SystemExit: It is larger with the fewest colours.
    """
    with Image.open(io.BytesIO(png)) as image:
        full = image.convert("RGB").resize((WIDTH, image.height * WIDTH // image.width), Image.Resampling.LANCZOS)
    for colours in COLOURS:
        out = io.BytesIO()
        full.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            out, "PNG", optimize=True
        )
        if out.tell() <= MOST_BYTES:
            return out.getvalue()
    raise SystemExit(f"A picture has {out.tell():,} bytes with {COLOURS[-1]} colours: lower WIDTH.")


if __name__ == "__main__":
    main()
