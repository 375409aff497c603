"""What a rank is doing: one table of phases, and the pulse that shows the present one.

The heartbeat reads how long a phase may last, the benchmark adds up the seconds of each, the plan
notes when parts of the gradient are complete. A new phase is one entry of this table.
"""

from typing import NamedTuple


class Phase(NamedTuple):
    """One kind of work.

    Attributes
    ----------
    name : str
    slow : bool
        May take long without visible progress: loading, saving.
    waits : bool
        The rank waits for other ranks, so it is not at fault for a stall.
    """

    name: str
    slow: bool = False
    waits: bool = False


START = Phase("start", slow=True)
DATA = Phase("data")
FORWARD = Phase("forward")
BACKWARD = Phase("backward")
REDUCE = Phase("reduce", waits=True)
UPDATE = Phase("update")
BETWEEN = Phase("between")
EVALUATE = Phase("evaluate")
CHECKPOINT = Phase("checkpoint", slow=True)

PHASES = {
    phase.name: phase
    for phase in (START, DATA, FORWARD, BACKWARD, REDUCE, UPDATE, BETWEEN, EVALUATE, CHECKPOINT)
}
STEP = (DATA, FORWARD, BACKWARD, REDUCE, UPDATE)
"""The phases of one training step, in their order."""


class Observer:
    """Follows one rank; its methods are called on that rank's own thread."""

    def entered(self, phase: Phase) -> None:
        """Note that a phase begins."""

    def handed_over(self, begin: int) -> None:
        """Note that the gradient is complete from element `begin` to its end."""


class Pulse:
    """What a rank is doing now; a change costs a few stores.

    Attributes
    ----------
    step : int
        The number of updates so far.
    phase : Phase
    progress : int
        A counter that grows with every piece of work done.
    waits : int
        Not 0 while the rank is inside a call in which it waits for others.
    observers : list of Observer
    """

    __slots__ = ("observers", "phase", "progress", "step", "waits")

    def __init__(self) -> None:
        self.step, self.phase, self.progress, self.waits = 0, START, 0, 0
        self.observers: list[Observer] = []

    def enter(self, phase: Phase, step: int) -> None:
        """Begin a phase of a step."""
        self.phase, self.step = phase, step
        self.progress += 1
        for observer in self.observers:
            observer.entered(phase)

    def hand_over(self, begin: int) -> None:
        """Report that the gradient is complete from element `begin` to its end."""
        for observer in self.observers:
            observer.handed_over(begin)
