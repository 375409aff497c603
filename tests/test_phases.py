"""What observers of a rank see of one training step."""

from ddpbp.base.phases import BACKWARD, BETWEEN, STEP, Observer, Phase
from ddpbp.comm.world import World
from ddpbp.config.read import resolve
from ddpbp.engine.build import make_trainer
from ddpbp.engine.data import open_dataset
from ddpbp.engine.trainer import Trainer


class Recorder(Observer):
    """Records the phases, and each hand-over with the phase it falls into."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.hand_overs: list[tuple[Phase, int]] = []

    def entered(self, phase: Phase) -> None:
        self.phases.append(phase)

    def handed_over(self, begin: int) -> None:
        self.hand_overs.append((self.phases[-1], begin))


def trained_step() -> tuple[Trainer, Recorder]:
    world, recorder = World(), Recorder()
    config = resolve(None, ["model.hidden=[300,200]"])
    trainer = make_trainer(config, open_dataset(config, world), world)
    world.pulse.observers.append(recorder)
    trainer.train_step(next(trainer.shards.epoch(0)))
    return trainer, recorder


def test_a_step_goes_through_the_phases_in_their_order():
    trainer, recorder = trained_step()
    assert recorder.phases == [*STEP, BETWEEN]
    assert trainer.world.pulse.step == 1


def test_the_gradient_is_handed_over_from_its_end_during_the_backward_pass():
    _, recorder = trained_step()
    assert {phase for phase, _ in recorder.hand_overs} == {BACKWARD}
    begins = [begin for _, begin in recorder.hand_overs]
    assert len(begins) >= 3  # a layer each, or pieces of it
    assert begins == sorted(begins, reverse=True)
    assert begins[-1] == 0
