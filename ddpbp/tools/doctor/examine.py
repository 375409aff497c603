"""The table: all checks in their order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpbp.comm.world import World
from ddpbp.config.settings import Config
from ddpbp.errors import DdpbpError
from ddpbp.tools.doctor import installation, machines, training
from ddpbp.tools.doctor.finding import Finding, ranks_text
from ddpbp.tools.doctor.limits import limit


def examine(
    config: Config, world: World, show: Callable[[str], None], timeout_seconds: float
) -> int:
    """Check everything and show each finding; return 1 if a check failed, else 0.

    Parameters
    ----------
    config : Config
    world : World
    show : callable
        Prints one finding.
    timeout_seconds : float
        The time after which a check has failed.
    """
    table = Table(world, show, timeout_seconds)
    table.check("launcher", lambda: installation.launcher(world))
    table.check("versions", lambda: installation.versions(world))
    table.check("environment", lambda: installation.environment(world))
    table.check("ranks", lambda: training.ranks(config, world))
    _check_training(config, world, table)
    table.check("clock", lambda: machines.clock(world))
    table.check("run folder", lambda: machines.run_folder(Path(config.output), world))
    table.check("links", lambda: machines.links(world))
    return int(table.failed)


class Table:
    """Runs checks one after the other, each with a limit on its time."""

    def __init__(self, world: World, show: Callable[[str], None], timeout_seconds: float) -> None:
        self._world, self._show, self._timeout_seconds = world, show, timeout_seconds
        self.failed = False

    def check(self, what: str, of: Callable[[], Finding | tuple[Finding, Any]]) -> Any:
        """Run one check and show its finding; return what else it made, or None."""
        timer = limit(self._timeout_seconds, what, first=self._world.rank == 0)
        made: Any = None
        try:
            outcome = of()
            finding, made = (outcome, None) if isinstance(outcome, Finding) else outcome
        except DdpbpError as error:
            finding = Finding("fail", what, str(error))
        timer.cancel()
        self.failed |= finding.status == "fail"
        self._show(str(finding))
        return made


def _check_training(config: Config, world: World, table: Table) -> None:
    """Check all that needs the data, and the network that is made for them."""
    from ddpbp.engine.build import make_trainer
    from ddpbp.engine.data import open_dataset
    from ddpbp.run.ranks import choose_threads

    def data() -> tuple[Finding, Any]:
        dataset = open_dataset(config, world)
        return Finding("pass", "data", dataset.description), dataset

    def canary() -> tuple[Finding, Any]:
        trainer = make_trainer(config, dataset, world)
        text = f"{trainer.canary[:12]}, the same bits on {ranks_text(world)}"
        return Finding("pass", "canary", text), trainer

    dataset = table.check("data", data)
    trainer = None if dataset is None else table.check("canary", canary)
    if trainer is None:
        return
    table.check("memory", lambda: training.memory(config, dataset, trainer))
    table.check("shared memory", lambda: training.shared_memory(trainer))
    table.check("reduction", lambda: training.reduction(trainer))
    parameters = trainer.network.parameter_count
    table.check("cores", lambda: machines.cores(choose_threads(config, parameters, world), world))
