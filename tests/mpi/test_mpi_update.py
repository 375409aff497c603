"""The update shared by the ranks of a host: same bits, one state, and no fault in it unnoticed."""

from itertools import islice
from typing import Any

import numpy as np
import pytest

from ddpbp.base.hashing import digest
from ddpbp.comm.join import join
from ddpbp.comm.world import World
from ddpbp.config.read import parse
from ddpbp.engine import update
from ddpbp.engine.build import make_trainer
from ddpbp.engine.data import open_dataset
from ddpbp.engine.trainer import Trainer
from ddpbp.engine.update import HostUpdate
from ddpbp.errors import OutOfStep
from ddpbp.nn import optimizers
from ddpbp.nn.optimizers import OPTIMIZERS

pytestmark = pytest.mark.mpi

STATEFUL = [name for name, optimizer in OPTIMIZERS.items() if optimizer.state_names]


@pytest.fixture(scope="module")
def world() -> World:
    return join()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(optimizers, "BLOCK", 3_000)
    monkeypatch.setattr(update, "WATCH_STEPS", 2)


def trainer_of(world: World, shard: str = "host", **optimizer: Any) -> Trainer:
    config = parse(
        {
            "batch_size": 64,
            "data": {"source": "synthetic", "examples": 640, "features": 150, "classes": 10},
            "model": {"hidden": [120, 90]},
            "optimizer": {"name": "adam", "learning_rate": 0.01, "shard": shard} | optimizer,
        }
    )
    return make_trainer(config, open_dataset(config, world), world)


def train(trainer: Trainer, steps: int) -> None:
    for shard in islice(trainer.shards.epoch(0, trainer.step), steps):
        trainer.train_step(shard)


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
@pytest.mark.parametrize("name", STATEFUL)
def test_every_optimizer_has_the_bits_of_one_process(world, name, clip_norm):
    numbers = {"name": name, "clip_norm": clip_norm, "weight_decay": 0.1}
    shared, alone = trainer_of(world, **numbers), trainer_of(World(), **numbers)
    assert isinstance(shared.update, HostUpdate)
    assert not isinstance(alone.update, HostUpdate)
    for trainer in (shared, alone):
        train(trainer, 7)
    shared.require_in_step()
    for name, vector in alone.vectors.items():
        assert shared.vectors[name].tobytes() == vector.tobytes()


def test_the_ranks_of_a_host_hold_one_state(world):
    shared = trainer_of(world)
    m = shared.vectors["optimizer.m"]
    world.local_barrier()
    if world.rank == 0:
        m[5] = 7.0
    world.local_barrier()
    assert m[5] == 7.0
    assert (trainer_of(world, "none").vectors["optimizer.m"] == 0.0).all()


def test_a_restored_state_continues_with_the_same_bits(world):
    whole, resumed = trainer_of(world), trainer_of(world)
    train(whole, 3)
    world.local_barrier()
    saved = {name: vector.copy() for name, vector in whole.vectors.items()}
    products = whole.optimizer.products
    resumed.restore(
        saved if world.rank == 0 else None, 0,
        step=3, eta=whole.eta, products=products,
        theta_sha256=digest([saved["theta"]]),
    )  # fmt: skip
    for trainer in (whole, resumed):
        train(trainer, 3)
        trainer.require_in_step()
    for name, vector in whole.vectors.items():
        assert resumed.vectors[name].tobytes() == vector.tobytes()


@pytest.mark.parametrize("vector", ["m", "v"])
@pytest.mark.parametrize("element", [4, -1])
def test_one_flipped_bit_of_the_state_stops_every_rank_at_the_next_check(world, vector, element):
    trainer = trainer_of(world)
    train(trainer, 3)
    world.local_barrier()
    if world.rank == 1:  # whose piece it is does not matter
        trainer.optimizer.state[vector].view(np.uint32)[element] ^= 1
    world.local_barrier()
    train(trainer, 2)
    owner = world.world_size - 1 if element < 0 else 0
    match = rf"step 5: optimizer\.{vector} changed between two updates.* on {world.host}; memory"
    with pytest.raises(OutOfStep, match=match) as raised:
        trainer.require_in_step()
    assert raised.value.code == 4
    message = str(raised.value)
    assert message.startswith("step" if owner == 0 else f"rank {owner} on ")
    assert len(set(world.all_gather_object(message))) == 1


def test_one_flipped_bit_of_theta_stops_every_rank_at_the_next_check(world):
    trainer = trainer_of(world)
    train(trainer, 3)
    if world.rank == world.world_size - 1:
        trainer.theta.flat.view(np.uint32)[4] ^= 1  # in a piece that another rank updates
    train(trainer, 2)
    with pytest.raises(OutOfStep, match=f"^step 5: theta: rank .* on {world.host}"):
        trainer.require_in_step()


@pytest.mark.parametrize("name", ["adam", "lamb"])
@pytest.mark.parametrize("vector", [0, 1, 2])
def test_a_core_that_computes_wrongly_is_found_by_a_second_rank(world, name, vector, monkeypatch):
    trainer = trainer_of(world, name=name)
    train(trainer, 3)
    if world.rank == world.world_size - 1:
        assert isinstance(trainer.update, HostUpdate)
        right, mine = type(trainer.optimizer).write_step, trainer.update.mine

        def wrong(self, step, piece, theta, grad, s, state):
            right(self, step, piece, theta, grad, s, state)
            if piece in mine:
                [s, *state][vector].view(np.uint32)[-1] ^= 1

        monkeypatch.setattr(type(trainer.optimizer), "write_step", wrong)
    train(trainer, update.WATCH_STEPS)
    what = ["the step of theta", r"optimizer\.m", r"optimizer\.v"][vector]
    with pytest.raises(OutOfStep, match=f"{what} is not what a second rank computes"):
        trainer.require_in_step()
