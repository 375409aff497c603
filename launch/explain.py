"""Explain why a job failed: the rank, host and step at which it began, and the cause."""

import signal
import sys
from collections.abc import Sequence
from typing import Any

from . import train_command
from .errors import print_message
from .supervise import REQUEUE, Ended


def explain(ended: Ended, python: Sequence[str], arguments: Sequence[str]) -> int:
    """Print what went wrong and where, unless the ranks agreed and have printed it themselves.

    Returns
    -------
    code : int
        The exit code of the job, which its run folder may know better than `ended`.
    """
    if ended.asked and ended.code == 128 + ended.asked:
        return _stopped(ended, arguments)
    if ended.stalled:
        print_message(f"{ended.stalled}; exit code {ended.code}")
        for line in (line for lines in ended.held.values() for line in lines):
            sys.stderr.write(line + "\n")
        return ended.code
    if ended.agreed and not ended.held:
        return ended.code
    fault = train_command.fault(python, arguments)
    code = ended.code
    if not any(ended.codes.values()):  # the ranks were killed before they could report
        code = int(fault.get("exit_code", code))
    rank = fault.get("rank", ended.first_failed)
    if rank is None:
        _unreported(ended, code)
    else:
        print_message(f"{_cause(ended, fault, rank, ended.codes.get(rank, code))}")
        for line in ended.held.get(rank, []):
            sys.stderr.write(line + "\n")
    return code


def _stopped(ended: Ended, arguments: Sequence[str]) -> int:
    """Explain a job that ended by the signal which the launcher received."""
    again = " for the second time" * ended.forced
    print_message(f"ended by {signal.Signals(ended.asked).name}{again}")
    if train_command.is_training(arguments) and not ended.forced:
        print_message("the training had not begun; nothing is lost")
        return REQUEUE
    return ended.code


def _unreported(ended: Ended, code: int) -> None:
    """Explain a failure that no rank reported."""
    for line in ended.launcher_lines:
        print_message(line)
    silent = sorted(set(ended.hosts) - set(ended.codes))
    ranks = ", ".join(f"{rank} on {ended.hosts[rank]}" for rank in silent)
    what = f"no exit code arrived from rank {ranks}" if ranks else "no rank started"
    print_message(f"{what}; exit code {code}")


def _cause(ended: Ended, fault: dict[str, Any], rank: int, code: int) -> str:
    """Return rank, host, step and cause of the first failure in one line."""
    where = f"rank {rank} on {ended.hosts.get(rank, fault.get('host', '?'))}"
    if "step" in fault:
        step = fault["step"]
        where += f", step {step}, {fault['phase']}" if "phase" in fault else f", after step {step}"
    cause = fault.get("cause", "failed")
    if code > 128:
        what = f"{where}: killed by signal {code - 128} ({signal.Signals(code - 128).name})"
    elif "last seen" in cause:  # written by the other ranks, which name the rank and its host
        what = cause
    else:
        what = f"{where}: {cause}"
    return f"{what}; exit code {code}"
