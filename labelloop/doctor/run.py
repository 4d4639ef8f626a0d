"""Runs the checks side by side: each with its own deadline, each failing alone, each after the checks that it needs."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labelloop.doctor.context import Context
from labelloop.doctor.finding import Check, Finding, problem, skipped
from labelloop.service.errors import LabelloopError

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Diagnosis:
    """The findings, in the order of the table of checks."""

    findings: Mapping[str, Finding]

    @property
    def healthy(self) -> bool:
        """True when no check found a problem (warnings may remain)."""
        return all(finding.level != "problem" for finding in self.findings.values())


def diagnose(
    context: Context,
    checks: Mapping[str, Check],
    *,
    timeout_s: float = TIMEOUT_S,
    tell: Callable[[str, Finding], None] | None = None,
) -> Diagnosis:
    """Run every check that applies and return what they found.

    Args:
        context: what the checks look at.
        checks: the table, name -> check. Checks on a project are left out when the context names none.
        timeout_s: how long one check may take. A check that hangs is reported and left behind: its thread is a daemon,
            so that it holds up neither the other checks nor the end of the program.
        tell: called with each finding as it comes in (for progress).
    """
    waiting = {name: check for name, check in checks.items() if context.project_id is not None or not check.project}
    order = tuple(waiting)
    arrived: queue.SimpleQueue[tuple[str, Finding]] = queue.SimpleQueue()
    deadlines: dict[str, float] = {}
    findings: dict[str, Finding] = {}

    def settle(name: str, finding: Finding) -> None:
        findings[name] = finding
        deadlines.pop(name, None)
        if tell is not None:
            tell(name, finding)

    while waiting or deadlines:
        for name in _startable(waiting, findings, order):
            check = waiting.pop(name)
            broken = [
                need for need in check.needs if need in findings and findings[need].level in ("problem", "skipped")
            ]
            if broken:
                settle(name, skipped(f"Not looked at, since {' and '.join(broken)} must be right first."))
                continue
            deadlines[name] = time.monotonic() + timeout_s
            threading.Thread(
                target=_look, args=(name, check, context, arrived), name=f"doctor-{name}", daemon=True
            ).start()
        if not deadlines:
            continue
        try:
            name, finding = arrived.get(timeout=max(0.0, min(deadlines.values()) - time.monotonic()))
        except queue.Empty:
            for name in [name for name, deadline in deadlines.items() if deadline <= time.monotonic()]:
                settle(name, _too_slow(name, timeout_s))
        else:
            if name in deadlines:  # else it was given up on already
                settle(name, finding)
    return Diagnosis({name: findings[name] for name in order})


def _startable(waiting: Mapping[str, Check], findings: Mapping[str, Finding], order: tuple[str, ...]) -> list[str]:
    return [name for name, check in waiting.items() if all(n in findings for n in check.needs if n in order)]


def _look(name: str, check: Check, context: Context, arrived: queue.SimpleQueue[tuple[str, Finding]]) -> None:
    try:
        finding = check.run(context)
    except LabelloopError as error:
        finding = problem(context.redact(error.message), context.redact(error.fix))
    except Exception as error:  # noqa: BLE001 - whatever a check raises costs that check alone
        finding = problem(
            f"The check itself failed: {type(error).__name__}: {context.redact(str(error))}",
            f"This is a fault of `labelloop doctor`'s check `{name}`: please report it with the line above.",
        )
    arrived.put((name, finding))


def _too_slow(name: str, timeout_s: float) -> Finding:
    return problem(
        f"No answer within {timeout_s:g} s.",
        f"Something that `{name}` looks at accepts connections and then stays silent: look at its log, and restart it.",
    )
