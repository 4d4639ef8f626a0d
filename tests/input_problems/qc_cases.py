"""Annotations and policies that quality control cannot read or compare, offline."""

import json
from functools import partial

from tests.input_problems.case import Case

SECTION = "Quality control: `labelloop qc report`, `consensus`, `what-if`"

CONFIG = """<View><Image name="image" value="$image"/><Text name="text" value="$text"/>
<RectangleLabels name="boxes" toName="image"><Label value="Car"/></RectangleLabels>
<Labels name="words" toName="text"><Label value="Name"/></Labels>
<TextArea name="caption" toName="image"/><Rating name="stars" toName="image"/>
<DateTime name="day" toName="image"/>
<Video name="clip" value="$clip"/><VideoRectangle name="track" toName="clip"/></View>"""
SIZE = {"original_width": 100, "original_height": 100}
BOX = {"id": "b", "from_name": "boxes", "to_name": "image", "type": "rectanglelabels", **SIZE,
       "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["Car"]}}  # fmt: skip
BROKEN = BOX | {"value": {"x": "left"}}


def said(control, type_, **value):
    return {"id": "q", "from_name": control, "to_name": "image", "type": type_, "value": value}


CAPTION, STARS = said("caption", "textarea", text=["a car"]), said("stars", "rating", rating=3)
DAY = said("day", "datetime", datetime="2026-01-01")
FRAME = {"frame": 1, "enabled": True, "x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "time": 0}
TRACK = said("track", "videorectangle", sequence=[FRAME], framesCount=9) | {"to_name": "clip"}


def annotations(*people, **fields):
    """An export of one task: what each annotator submitted."""
    own = [
        {"id": number, "completed_by": number, "result": results, "updated_at": f"2026-01-01T00:00:0{number}Z"} | fields
        for number, results in enumerate(people, start=1)
    ]
    return json.dumps([{"id": 1, "data": {"image": "s3://b/a.jpg"}, "annotations": own}])


def command(folder, *, words=("report",), source, policy=""):
    (folder / "export.json").write_text(source)
    (folder / "config.xml").write_text(CONFIG)
    (folder / "policy.toml").write_text(policy)
    given = ["--policy", folder / "policy.toml"] if policy else []
    name = "--out" if words[0] == "consensus" else "--json"
    shared = ["--from", folder / "export.json", "--label-config", folder / "config.xml"]
    return ["qc", *words, *shared, *given, name, folder / "out.json"]


def verdict(folder, expected):
    (task,) = json.loads((folder / "out.json").read_text())["tasks"]
    assert task["verdict"] == expected
    assert bool(task["not_judged"]) == (expected == "not_judged")
    assert (task["agreement"] is None) == (expected != "agreed")


def consensus(folder, results, *, carried=0, rejected=0):
    (task,) = json.loads((folder / "out.json").read_text())
    assert task["annotations"][0]["result"] == results
    told = task["meta"]["consensus"]
    assert [sum(line["results"] for line in told[key]) for key in ("carried", "rejected")] == [carried, rejected]


def nothing_written(folder):
    assert not (folder / "out.json").exists()


def report(problem, source, expected, *, policy="", note="the task is not judged"):
    """A report on one task."""
    says = ("1 not judged" if expected == "not_judged" else "1 agreed",)
    after = partial(verdict, expected=expected)
    return Case(problem, "skipped and counted", partial(command, source=source, policy=policy), says, 0, after, note)


def carried(problem, results, *, rejected, words):
    """A consensus of two annotators who submitted the same."""
    make = partial(command, words=("consensus",), source=annotations(results, results))
    after = partial(consensus, results=results, carried=len(results), rejected=rejected)
    return Case(problem, "read", make, words, 0, after, "one annotator's answer, as it was submitted")


def refused(problem, words, says, *, source="[]", policy=""):
    make = partial(command, words=words, source=source, policy=policy)
    return Case(problem, "refused", make, says, 1, nothing_written)


OTHER_FORMS = ("text", None, {"boxes": 1}, [None], [[BOX]], [BOX | {"type": None}], [BOX | {"from_name": "bxs"}])
CASES = (
    report("one of two annotations holds a malformed region", annotations([BOX], [BROKEN]), "not_judged"),
    report("one of two annotations is half read", annotations([BOX], [BOX, BROKEN | {"id": "c"}]), "not_judged"),
    *(
        report("the results of one of two annotations are of another form", annotations([], other), "not_judged")
        for other in OTHER_FORMS
    ),
    report("one of three annotations cannot be read, the others agree", annotations([BOX], [BROKEN], [BOX]), "agreed",
           note="that one has no part in the verdict, and its results are counted"),
    report("answers that no metric compares", annotations([BOX, TRACK], [BOX, TRACK]), "not_judged"),
    report("answers that no metric compares, with weight 0", annotations([BOX, TRACK], [BOX, TRACK]), "agreed",
           policy="[controls.track]\nweight = 0", note="named as not compared"),
    *(
        Case(problem, "read", partial(command, source=annotations([BOX], [BOX], **{key: value})), ("1 agreed",), 0,
             partial(verdict, expected="agreed"))
        for problem, key, value in (
            ("annotations without an id", "id", None),
            ("annotations with a text as id", "id", "0c9b-41"),
            ("annotations of unknown annotators", "completed_by", None),
        )
    ),
    carried("answers that share an id, which have no merge", [CAPTION, STARS], rejected=2,
            words=("caption (1 task), stars (1 task)",)),
    carried("tracks of a video, which have no merge", [TRACK], rejected=1, words=("track (1 task)",)),
    Case("an annotation that cannot be read, in a consensus", "skipped and counted",
         partial(command, words=("consensus",), source=annotations([DAY | {"id": "d"}], [BROKEN])),
         ("1 result could not be read",), 0),
    refused("a policy with several faults", ("report",), ("agreement: must be above 0", "wait: no such key"),
            policy="agreement = 2\n[controls.boxes]\nwait = 1"),
    refused("a policy that names a control that is not there", ("report",), ("names 'box' ('boxes'?)",),
            policy="[controls.box]\nweight = 2"),
    refused("a policy that names a label that is not there", ("report",), ("names 'car' ('Car'?)",),
            policy='[[rules]]\nrule = "max_regions"\nvalue = 1\nlabels = ["car"]'),
    *(
        refused("no task can be read", (name,), ("whose objects have no data",),
                source='[{"id": 1, "data": 1}, {"id": 2, "data": 2}]',
                policy="agreement = 0.8" if name == "what-if" else "")
        for name in ("report", "consensus", "what-if")
    ),
    refused("an export that ends before its end", ("report",), ("after 0 tasks",), source=annotations([BOX])[:-9]),
    refused("an export that ends before its end", ("consensus",), ("after 0 tasks",), source=annotations([BOX])[:-9]),
)  # fmt: skip
