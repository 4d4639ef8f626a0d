"""Run the checks in parallel, each with its own deadline and after the checks that it needs."""

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from labelloop.doctor.context import DoctorContext
from labelloop.doctor.finding import DoctorCheck, Finding, problem, skipped
from labelloop.service.errors import LabelloopError

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class DoctorReport:
    """The findings by check, in the order of the table of checks."""

    findings: Mapping[str, Finding]

    @property
    def healthy(self) -> bool:
        """Whether no check found a problem; warnings are allowed."""
        return all(finding.level != "problem" for finding in self.findings.values())


def diagnose(
    context: DoctorContext, checks: Mapping[str, DoctorCheck], *, timeout_s: float = TIMEOUT_S
) -> DoctorReport:
    """Run every check that applies.

    Args:
        context: The context of the run.
        checks: The table, name -> check. Checks of a project are left out if the context has none.
        timeout_s: Seconds that one check may take. A check that hangs is reported and abandoned: its daemon thread
            blocks neither the other checks nor the end of the program.
    """
    pending = {name: check for name, check in checks.items() if context.project_id is not None or not check.project}
    order = tuple(pending)
    results: queue.SimpleQueue[tuple[str, Finding]] = queue.SimpleQueue()
    deadlines: dict[str, float] = {}
    findings: dict[str, Finding] = {}

    def finish(name: str, finding: Finding) -> None:
        findings[name] = finding
        deadlines.pop(name, None)

    while pending or deadlines:
        for name in _ready_to_run(pending, findings, order):
            check = pending.pop(name)
            broken = [
                need for need in check.needs if need in findings and findings[need].level in ("problem", "skipped")
            ]
            if broken:
                finish(name, skipped(f"Not checked: fix {' and '.join(broken)} first."))
                continue
            deadlines[name] = time.monotonic() + timeout_s
            threading.Thread(
                target=_run_check, args=(name, check, context, results), name=f"doctor-{name}", daemon=True
            ).start()
        if not deadlines:
            continue
        try:
            name, finding = results.get(timeout=max(0.0, min(deadlines.values()) - time.monotonic()))
        except queue.Empty:
            for name in [name for name, deadline in deadlines.items() if deadline <= time.monotonic()]:
                finish(name, _too_slow(name, timeout_s))
        else:
            if name in deadlines:  # otherwise it timed out already
                finish(name, finding)
    return DoctorReport({name: findings[name] for name in order})


def _ready_to_run(
    pending: Mapping[str, DoctorCheck], findings: Mapping[str, Finding], order: tuple[str, ...]
) -> list[str]:
    return [name for name, check in pending.items() if all(n in findings for n in check.needs if n in order)]


def _run_check(
    name: str, check: DoctorCheck, context: DoctorContext, results: queue.SimpleQueue[tuple[str, Finding]]
) -> None:
    try:
        finding = check.run(context)
    except LabelloopError as error:
        finding = problem(context.redact(error.message), context.redact(error.fix))
    except Exception as error:  # noqa: BLE001 - an exception is a finding of this check alone
        finding = problem(
            f"The check itself failed: {type(error).__name__}: {context.redact(str(error))}",
            f"This is a bug in the check `{name}` of `labelloop doctor`. Report it with the line above.",
        )
    results.put((name, finding))


def _too_slow(name: str, timeout_s: float) -> Finding:
    return problem(
        f"No answer within {timeout_s:g} s.",
        f"A service that `{name}` checks accepts connections and does not answer. See its log, and restart it.",
    )
