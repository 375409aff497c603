"""How far `ddpbp plan` is from what `ddpbp bench` measures, on one host and on simulated ones.

    python -m tests.benchmarks.plan_error configs/fashion-mnist.toml    (root, for several hosts)

Each shape is predicted twice: from a plan made there, and from the plan of one host that was told
the network's bandwidth. Simulated hosts share this machine's cores: with more ranks than cores a
plan from elsewhere cannot know how slow they are.
"""

import argparse
import json
import sys
from typing import Any

from tests.cluster.hosts import Hosts

STEP = """
import json, sys
from pathlib import Path
from ddpbp import join, resolve
*settings, _, file = sys.argv[1:]
path = Path(settings.pop(0)) if "=" not in settings[0] else None
world, config = join(), resolve(path, settings)
from ddpbp.tools.bench import measure
found = measure(config, world)
if world.rank == 0:
    Path(file).write_text(json.dumps(found))
"""
PLAN = ("-m", "ddpbp", "plan")


def figures(hosts: Hosts, ranks: list[int], *arguments: str) -> dict[str, Any]:
    """Run a command of ddpbp on so many ranks of h1, h2, ...; return its figures."""
    file = hosts.folder / "figures.json"
    line = [sys.executable, *arguments, "--json", str(file)]
    if sum(ranks) > 1:
        line = [*hosts.mpiexec(ranks), *line]
    done = hosts.run("h1", line, seconds=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(file.read_text()))


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gbit", default=1.0, type=float)
    parser.add_argument("--shapes", default="1 2 1,1 1,1,1 1,1,1,1")
    parser.add_argument("settings", nargs="+")
    given = parser.parse_args()
    with Hosts(4) as hosts:
        hosts.shape(f"{given.gbit}gbit")
        network = [f"--bandwidth={given.gbit}", "--hosts=2,3,4", "--ranks-per-host"]
        elsewhere = {p: figures(hosts, [2], *PLAN, *given.settings, *network, p) for p in "12"}
        for shape in given.shapes.split():
            ranks = [int(n) for n in shape.split(",")]
            bench = ("-c", STEP, *given.settings)
            before = figures(hosts, ranks, *bench)["seconds_per_step"]["all"]
            there = figures(hosts, ranks, *PLAN, *given.settings, f"--hosts={len(ranks)}")
            after = figures(hosts, ranks, *bench)["seconds_per_step"]["all"]
            step = (before + after) / 2
            shown = [f"{shape:<8} measured {before * 1e3:8.3f} and {after * 1e3:8.3f} ms"]
            for name, plan in (("there", there), ("elsewhere", elsewhere[str(max(ranks))])):
                for row in plan["predictions"]:
                    if (row["hosts"], row["ranks"]) == (len(ranks), sum(ranks)):
                        error = row["step_seconds"] / step - 1
                        shown.append(f"{name} {row['step_seconds'] * 1e3:8.3f} ms {error:+5.0%}")
            print("   ".join(shown), flush=True)


if __name__ == "__main__":
    main()
