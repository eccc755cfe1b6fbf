"""Quality gates as code: what a run must show before its student may be called good. RunReport in, verdicts out.

Hard gates pass or fail: what ships must be near its teacher, do no harm, be what its file says and keep the budgets.
Advisory gates pass or warn: they point at what a person must judge for the task at hand. Either may be unverified.
"""

from __future__ import annotations

from edgekd.gates.deployment import deployment_gates
from edgekd.gates.transfer import transfer_gates
from edgekd.report.document import Gate, RunReport


def evaluate_gates(report: RunReport) -> tuple[Gate, ...]:
    """Every gate's verdict, in the order a reader wants them: accuracy, artifacts, int8, budgets, speed, transfer.

    >>> Gate(name="speedup", state="pass", figure="9.3x [9.0, 9.6]", threshold="> 1, CI excluding 1").state
    'pass'
    """
    return (*deployment_gates(report), *transfer_gates(report))


__all__ = ["evaluate_gates"]
