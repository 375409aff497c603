"""The end by a fault: finish a checkpoint write, then keep the cause in fault.json."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpbp.comm.world import Lost
from ddpbp.engine.trainer import Trainer
from ddpbp.errors import DdpbpError, Stopped
from ddpbp.store.checkpoint_writer import Writer
from ddpbp.store.run_folder import write_fault

REPORT_SECONDS = 2.0  # the time that the rank which recorded its fault first has to print it


@contextmanager
def finished(writer: Writer | None) -> Iterator[None]:
    """Finish a checkpoint write in progress, however the block exits."""
    try:
        yield
    finally:
        if writer:
            writer.wait()


@contextmanager
def recorded(folder_of: Callable[[], Path | None], trainer: Trainer) -> Iterator[None]:
    """Leave fault.json if the block ends by a fault; of several ranks, that of the first.

    `folder_of` returns the run folder, or None where it is no longer this run's.

    Raises
    ------
    SystemExit
        Instead of this rank's fault, if another rank has recorded one before.
    """
    try:
        yield
    except (Stopped, Lost, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        world, pulse = trainer.world, trainer.world.pulse
        shared = isinstance(error, DdpbpError)  # it has reached every rank
        folder = folder_of()
        if folder is None or (shared and world.rank):
            raise
        fault = {
            "rank": world.rank,
            "host": world.host,
            "step": trainer.step,
            "phase": pulse.phase.name,
            "cause": str(error) if shared else f"{type(error).__name__}: {error}",
            "exit_code": error.code if isinstance(error, DdpbpError) else 1,
        }
        error.add_note("rank {rank} on {host}, step {step}, phase {phase}".format(**fault))
        if not write_fault(folder, fault) and not shared:
            time.sleep(REPORT_SECONDS)  # the other rank prints its message, then ends all
            raise SystemExit(1) from None
        raise
