"""Simulated projects whose reason for disagreement is known, as Label Studio's tasks (for `diagnoses`)."""

import random
from dataclasses import dataclass, field, replace

WIDTH, HEIGHT = 1000, 800
LABELS = ("Bus", "Car", "Van")
CHOICES = ("blurred", "dark", "good", "wet")
TEXT = "x" * 2000


@dataclass(frozen=True)
class Habit:
    """How an annotator works: what a careful one does, unless it says otherwise.

    Attributes:
        miss: Share of the objects missed at random.
        extra: Regions drawn without an object, per object.
        wrong: Share of wrong labels or answers.
        jitter: Standard deviation of an edge, in shares of the object's side.
        skip_below: Objects with a shorter side are left out (in 95 %).
        grow: Share by which regions with a shadow reach further.
        says: label or answer -> the one given instead of it (in 95 %).
        only_without_shadow: Whether ``says`` is about objects without a shadow, which no figure shows.
        skips_without_shadow: Whether objects without a shadow are left out (in 95 %).
        copies: Annotator whose work is copied; 0: none.
        constant: The only answer ever given; empty: none.
        accepts: Whether pre-labels are submitted unchanged.
        pace: Multiplies the time of a task.
        accept_pace: Multiplies the time of a task of which only pre-labels are accepted.
    """

    miss: float = 0.03
    extra: float = 0.02
    wrong: float = 0.03
    jitter: float = 0.02
    skip_below: float = 0.0
    grow: float = 0.0
    says: dict[str, str] = field(default_factory=dict)
    only_without_shadow: bool = False
    skips_without_shadow: bool = False
    copies: int = 0
    constant: str = ""
    accepts: bool = False
    pace: float = 1.0
    accept_pace: float = 1.0


@dataclass(frozen=True)
class Shape:
    """The size of a project: tasks, annotators, annotators of a task, what is labelled, whether small is hard."""

    tasks: int = 300
    people: int = 6
    each: int = 6
    kind: str = "boxes"
    prelabels: bool = False
    hard: bool = False


def make_tasks(shape, habits, seed):
    """Label Studio's tasks of a project; ``habits``: annotator -> Habit."""
    rng = random.Random(seed)
    team = sorted(habits)
    return [_task(number, shape, habits, rng, _who(shape, team, habits, rng)) for number in range(1, shape.tasks + 1)]


def _who(shape, team, habits, rng):
    chosen = rng.sample(team, min(shape.each, len(team)))
    for who in list(chosen):
        source = habits[who].copies
        if source and source not in chosen:
            chosen[(chosen.index(who) + 1) % len(chosen)] = source
    return sorted(dict.fromkeys(chosen), key=lambda who: (habits[who].copies > 0, rng.random()))


def _task(number, shape, habits, rng, people):
    truth = _truth(shape, rng)
    predicted = _predicted(truth, shape, rng) if shape.prelabels else None
    annotations, drawn = [], {}
    for place, who in enumerate(people):
        habit = habits[who]
        if habit.copies in drawn:
            result = _copied(drawn[habit.copies], shape, rng)
        elif predicted is not None and habit.accepts:
            result = predicted
        else:
            result = _answer(truth, shape, habit, rng, predicted)
        drawn[who] = result
        origins = _origins(result, shape, predicted)
        pace = habit.pace * (habit.accept_pace if set(origins) == {"prediction"} else 1.0)
        annotations.append(
            {
                "id": number * 100 + place,
                "completed_by": who,
                "result": [
                    _result(item, shape, f"{number}-{who}-{index}") | ({"origin": origin} if origin else {})
                    for index, (item, origin) in enumerate(zip(result, origins, strict=True))
                ],
                "lead_time": round(rng.lognormvariate(3, 0.4) * pace, 2),
                "created_at": f"2026-01-{1 + (number * 20 // 300) % 28:02d}T{10 + place:02d}:00:00Z",
                "updated_at": f"2026-01-{1 + (number * 20 // 300) % 28:02d}T{10 + place:02d}:00:00Z",
            }
        )
    predictions = (
        [{"id": number, "result": [_result(item, shape, f"p{number}-{index}") for index, item in enumerate(predicted)]}]
        if predicted is not None
        else []
    )
    data = {"text": TEXT} if shape.kind == "spans" else {"image": f"{number}.jpg"}
    return {"id": number, "data": data, "annotations": annotations, "predictions": predictions}


def _origins(result, shape, predicted):
    """What Label Studio says of each result: "" of one by hand."""
    if predicted is None:
        return [""] * len(result)
    if shape.kind == "choices":
        return ["prediction" if item in predicted else "prediction-changed" for item in result]
    return [item[6] if len(item) > 6 else "prediction" if item in predicted else "" for item in result]


def _truth(shape, rng):
    """(label, left, top, right, bottom, whether it has a shadow) of each object, or the answer."""
    if shape.kind == "choices":
        return rng.choice(CHOICES)
    objects = []
    for place in rng.sample(range(12), rng.randint(3, 6)):
        if shape.kind == "spans":
            length = int(10 ** rng.uniform(0.6, 1.9))
            start = place * 150 + rng.randint(0, 40)
            objects.append((rng.choice(LABELS), start, 0, start + length, 1, rng.random() < 0.7))
            continue
        width, ratio = 10 ** rng.uniform(1.2, 2.2), rng.uniform(0.7, 1.4)
        left, top = place % 4 * 250 + rng.uniform(0, 60), place // 4 * 260 + rng.uniform(0, 40)
        objects.append((rng.choice(LABELS), left, top, left + width, top + min(width * ratio, 200), rng.random() < 0.7))
    return objects


def _answer(truth, shape, habit, rng, predicted=None):
    if shape.kind == "choices":
        answer = habit.constant or truth
        if not habit.constant:
            if truth in habit.says and rng.random() < 0.95:
                answer = habit.says[truth]
            elif rng.random() < habit.wrong:
                answer = rng.choice([name for name in CHOICES if name != truth])
        return [answer]
    found = []
    for label, left, top, right, bottom, shadow in truth:
        side = min(right - left, bottom - top) if shape.kind == "boxes" else right - left
        is_left_out = side < habit.skip_below or (habit.skips_without_shadow and not shadow)
        if is_left_out and rng.random() < 0.95:
            continue
        if rng.random() < habit.extra:
            found.append(_moved((rng.choice(LABELS), left, top, right, bottom, False), shape, rng))
        if rng.random() < (min(3 * habit.miss, 0.9) if shape.hard and side < 35 else habit.miss):
            continue
        given = habit.constant or label
        if not habit.constant:
            is_open = label in habit.says and not (habit.only_without_shadow and shadow)
            if is_open and rng.random() < 0.95:
                given = habit.says[label]
            elif rng.random() < habit.wrong:
                given = rng.choice([name for name in LABELS if name != label])
        kept = next((item for item in predicted or () if _same_object(item, (label, left, top, right, bottom))), None)
        if kept is not None and kept[0] == given and rng.random() < 0.75:
            found.append(kept)
            continue
        drawn = _drawn(given, left, top, right, bottom, shadow, habit, shape, rng)
        found.append((*drawn, "prediction-changed") if kept is not None else drawn)
    return found


def _same_object(item, truth):
    """Whether a region is about an object, whatever its label: the middles are near."""
    width, height = truth[3] - truth[1], truth[4] - truth[2]
    middles = ((item[1] + item[3] - truth[1] - truth[3]) / 2, (item[2] + item[4] - truth[2] - truth[4]) / 2)
    return abs(middles[0]) < width / 4 and abs(middles[1]) < height / 4


def _drawn(label, left, top, right, bottom, shadow, habit, shape, rng):
    width, height = right - left, bottom - top
    if shape.kind == "spans":
        # Borders of words: most are exact.
        off = [rng.choice((-1, 1)) * max(1, round(width * 0.1)) if rng.random() < habit.jitter * 3 else 0
               for _ in range(2)]  # fmt: skip
        grown = round(habit.grow * width) if shadow else 0
        return (label, left + off[0], 0, max(right + off[1], left + off[0] + 2) + grown, 1, shadow)
    noise = [rng.gauss(0, habit.jitter * side + 0.7) for side in (width, height, width, height)]
    grown = habit.grow * height if shadow else 0.0
    edges = (left + noise[0], top + noise[1], right + noise[2], bottom + noise[3] + grown)
    return (label, *edges, shadow)


def _moved(item, shape, rng):
    """A region beside every object."""
    label, left, top, right, bottom, shadow = item
    if shape.kind == "spans":
        start = rng.randint(1800, 1950)
        return (label, start, 0, start + rng.randint(4, 40), 1, shadow)
    move = rng.uniform(0.9, 1.1) * (right - left) + 60
    return (label, left + move, top + 20, right + move, bottom + 20, shadow)


def _copied(result, shape, rng):
    if shape.kind != "boxes":
        return list(result)
    return [(item[0], *(edge + rng.gauss(0, 0.25) for edge in item[1:5]), item[5]) for item in result]


def _predicted(truth, shape, rng):
    """A model's answer: 25 % of its regions or answers are wrong."""
    model = Habit(miss=0.1, wrong=0.25, extra=0.15, jitter=0.05)
    return _answer(truth, shape, model, rng)


def _result(item, shape, id_):
    if shape.kind == "choices":
        return {"id": id_, "from_name": "quality", "to_name": "image", "type": "choices", "value": {"choices": [item]}}
    label, left, top, right, bottom = item[:5]
    if shape.kind == "spans":
        value = {"start": int(left), "end": int(right), "text": TEXT[int(left) : int(right)], "labels": [label]}
        return {"id": id_, "from_name": "label", "to_name": "text", "type": "labels", "value": value}
    value = {
        "x": 100 * left / WIDTH,
        "y": 100 * top / HEIGHT,
        "width": 100 * max(right - left, 2) / WIDTH,
        "height": 100 * max(bottom - top, 2) / HEIGHT,
        "rotation": 0,
        "rectanglelabels": [label],
    }
    return {
        "id": id_,
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": value,
    }


@dataclass(frozen=True)
class Truth:
    """What is to be said of a project.

    Attributes:
        habits: annotator -> Habit.
        kind: The diagnosis; empty: nothing.
        content: Word that must occur in what the split follows; empty: any.
        sides: The two groups of a camp; empty without camps.
        who: The annotators to be named.
    """

    habits: dict[int, Habit]
    kind: str = ""
    content: str = ""
    sides: tuple[frozenset[int], frozenset[int]] | tuple[()] = ()
    who: frozenset[int] = frozenset()


CAREFUL = Habit()
CARELESS = Habit(miss=0.3, extra=0.1, wrong=0.35, jitter=0.07)


def _team(shape, rng):
    team = list(range(1, shape.people + 1))
    rng.shuffle(team)
    return team


def _camps(shape, rng, habit, content):
    team = _team(shape, rng)
    half = frozenset(team[: len(team) // 2])
    habits = {who: habit if who in half else CAREFUL for who in team}
    kind = (
        "guideline" if len(half) > 1 and len(team) - len(half) > 1 else "two views" if len(team) == 2 else "one person"
    )
    who = half if kind == "one person" else frozenset()
    return Truth(habits, kind, content, (half, frozenset(team) - half), who)


def camps_label(shape, rng):
    names = CHOICES if shape.kind == "choices" else LABELS
    first, second = rng.sample(names, 2)
    return _camps(shape, rng, Habit(says={first: second}), "label")


def camps_some_of_a_label(shape, rng):
    first, second = rng.sample(LABELS, 2)
    return _camps(shape, rng, Habit(says={first: second}, only_without_shadow=True), "label")


def camps_some_objects(shape, rng):
    return _camps(shape, rng, Habit(skips_without_shadow=True), "size")


def camps_small(shape, rng):
    return _camps(shape, rng, Habit(skip_below=rng.uniform(22, 45) if shape.kind == "boxes" else 12), "size")


def camps_border(shape, rng):
    return _camps(shape, rng, Habit(grow=rng.uniform(0.15, 0.3)), "border")


def _named(shape, rng, count, habit, kind):
    team = _team(shape, rng)
    guilty = frozenset(team[:count])
    return Truth({who: habit if who in guilty else CAREFUL for who in team}, kind, who=guilty)


def two_miss_half(shape, rng):
    habit = Habit(wrong=0.4) if shape.kind == "choices" else Habit(miss=0.5)
    return _named(shape, rng, 2, habit, "careless")


def one_careless(shape, rng):
    return _named(shape, rng, 1, CARELESS, "careless")


def three_careless(shape, rng):
    return _named(shape, rng, 3, CARELESS, "careless")


def all_waver(shape, rng):
    habits = {}
    for who in _team(shape, rng):
        noise = rng.uniform(0.15, 0.3)
        habits[who] = Habit(miss=noise, wrong=noise, extra=0.05)
    return Truth(habits, "hard")


def copier(shape, rng):
    team = _team(shape, rng)
    return Truth(
        {who: Habit(copies=team[1]) if who == team[0] else CAREFUL for who in team}, "copier", who=frozenset(team[:1])
    )


def accepting_bot(shape, rng):
    return _named(shape, rng, 1, Habit(accepts=True, pace=rng.choice((0.1, 0.6))), "click-through")


def quick_acceptor(shape, rng):
    """Accepts pre-labels that are right in a tenth of the time, and corrects the others as all do."""
    team = _team(shape, rng)
    quick = Habit(accept_pace=0.1)
    return Truth({who: quick if who == team[0] else CAREFUL for who in team})


def constant_bot(shape, rng):
    names = CHOICES if shape.kind == "choices" else LABELS
    return _named(shape, rng, 1, Habit(constant=rng.choice(names), pace=rng.choice((0.1, 0.6))), "click-through")


def fast_bot(shape, rng):
    return _named(shape, rng, 1, replace(CARELESS, pace=0.08, wrong=0.7, miss=0.5), "click-through")


def all_careful(shape, rng):
    return Truth(dict.fromkeys(_team(shape, rng), CAREFUL))


TRUTHS = {
    "camps on a label": camps_label,
    "camps on some of a label": camps_some_of_a_label,
    "camps on marking some objects": camps_some_objects,
    "camps on small objects": camps_small,
    "camps on borders": camps_border,
    "two miss half at random": two_miss_half,
    "one careless": one_careless,
    "three careless": three_careless,
    "all waver": all_waver,
    "a copier": copier,
    "a bot accepts pre-labels": accepting_bot,
    "one accepts right pre-labels quickly": quick_acceptor,
    "a bot gives one answer": constant_bot,
    "a bot is too fast": fast_bot,
    "all careful": all_careful,
}
