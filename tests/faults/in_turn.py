"""Train a list of configurations, one after the other, in this process: start-up is paid once.

    mpirun -n 3 python tests/faults/in_turn.py LIST [--hosts 0,0,1] [--threads 2] [--resume]

LIST is a JSON file: [{"folder", "leaves", "words"}, ...]. How each ended goes to outcome.json of
its folder; one that has it is passed over, and so is one with fewer leaves than ranks. The process
ends early with 75 if a run was stopped, and with 1 by a fault that no run may end by.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import time
from pathlib import Path

from ddpbp.cli import process
from ddpbp.cli.main import run
from ddpbp.comm.join import join, launched
from ddpbp.comm.mpi import MpiWorld
from ddpbp.run import save_requests
from ddpbp.run.save_requests import SaveRequests

STOPPED = 75


class SlowRequests(SaveRequests):
    """Prints a dot and sleeps at each step: a signal can aim at a run that costs nothing."""

    seconds = 0.0

    def pending(self, rank: int) -> int:
        if self.seconds and not rank:
            os.write(1, b".")
            time.sleep(self.seconds)
        return super().pending(rank)


def captured(words: list[str]) -> tuple[int, str, str]:
    """Run one command; return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return code, out.getvalue(), err.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path)
    parser.add_argument("--hosts", default="", help="the number of the host of each rank")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--simulate", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    rank, ranks = launched() or (0, options.simulate or 1)
    if not options.simulate:
        hosts = [int(host) for host in options.hosts.split(",") if host]
        world = MpiWorld(None, as_host=hosts[rank]) if hosts else join()
        # Made once: the library has few communicators.
        vars(process)["join"] = lambda mpi=None: world
    SlowRequests.seconds = options.slow
    save_requests.SaveRequests = SlowRequests  # type: ignore[misc]
    where = ["--simulate-ranks", str(options.simulate)] if options.simulate else []
    for task in json.loads(options.list.read_text()):
        folder = Path(task["folder"])
        if (folder / "outcome.json").exists() or task["leaves"] < ranks:
            continue
        started = ["--resume", "auto"] if options.resume else ["--overwrite"]
        threads = f"threads={min(options.threads, task['leaves'] // ranks)}"
        code, out, err = captured(["train", *task["words"], threads, *started, *where])
        if code == STOPPED:
            sys.exit(code)
        outcome = {"code": code, "err": err, "resumed": "continuing from" in out}
        if code not in (0, 2, 3) or "Traceback" in err:
            sys.stderr.write(err)
            sys.exit(1)
        if not code:
            outcome["eval"] = captured(["eval", str(folder), "--json", *where])[:3]
        if rank == 0:
            folder.mkdir(exist_ok=True)
            temporary = folder / f".outcome.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(outcome))
            temporary.rename(folder / "outcome.json")


if __name__ == "__main__":
    main()
