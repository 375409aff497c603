"""Splits, standardisation and the data set of a run: any number of ranks, the same bits."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ddpbp.base.tasks import CLASSIFICATION, REGRESSION
from ddpbp.comm.simulated import simulate
from ddpbp.comm.world import World
from ddpbp.data import checks, rows
from ddpbp.data import standardization as module
from ddpbp.data.dataset import Dataset, Part, make_dataset
from ddpbp.data.rows import ArrayRows
from ddpbp.data.sources import Examples, Source
from ddpbp.data.standardization import fit_standardization
from ddpbp.engine.team import Team
from ddpbp.errors import DataError

ALONE = Team(World())


def examples_of(x: npt.ArrayLike, y: npt.NDArray[Any]) -> Examples:
    features = checks.features(ArrayRows(np.asarray(x), "x"), "x")
    return Examples(features, checks.targets(ArrayRows(y, "y"), "y"), "the data: train")


def source_of(
    x: npt.ArrayLike, y: npt.NDArray[Any] | None = None, test: Examples | None = None
) -> Source:
    x = np.asarray(x)
    y = np.arange(len(x), dtype=np.float64)[:, None] if y is None else y
    return Source(examples_of(x, y), test, None, "the data", REGRESSION)


def random_source(n: int = 3_001, features: int = 4, dtype: Any = np.float64) -> Source:
    """Return examples whose target is their row."""
    x = np.random.default_rng(6).normal(3.0, 2.0, (n, features)).astype(dtype)
    return source_of(x, np.arange(n, dtype=np.float64)[:, None])


def prepared(
    source: Source,
    *,
    validation: float | Source = 0.0,
    test: float | Source | None = None,
    standardize: bool = True,
    keep_type: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    team: Team = ALONE,
) -> Dataset:
    return make_dataset(
        source,
        validation=validation,
        test=test,
        standardize=standardize,
        keep_type=keep_type,
        dtype=dtype,
        seed=seed,
        team=team,
    )


def split(
    source: Source, *, validation: float | Source, test: float | Source | None, seed: int
) -> tuple[Part, Part | None, Part | None]:
    """Return the parts as they are in the source."""
    whole = prepared(
        source, validation=validation, test=test, standardize=False, dtype="float64", seed=seed
    )
    return whole.train, whole.validation, whole.test


def rows_in(parts: Iterable[Part | None]) -> list[list[int]]:
    return [part.y[:, 0].astype(int).tolist() if part else [] for part in parts]


# --- split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "validation", "test"), [(100, 0.2, 0.3), (101, 0.1, None), (7, 0.5, 0.0)]
)
def test_split_is_disjoint_complete_and_in_the_order_of_the_file(n, validation, test):
    train, held, tested = rows_in(split(random_source(n), validation=validation, test=test, seed=1))
    assert sorted(train + held + tested) == list(range(n))
    assert (len(held), len(tested)) == (round(validation * n), round((test or 0.0) * n))
    for part in (train, held, tested):
        assert part == sorted(part)


def test_split_is_a_function_of_the_seed():
    source = random_source(1_000)

    def held_out(seed: int) -> list[int]:
        return rows_in(split(source, validation=0.1, test=None, seed=seed))[1]

    assert held_out(1) == held_out(1)
    common = set(held_out(1)) & set(held_out(2))
    assert len(common) < 30  # 10 on average
    # drawn from everywhere, not cut off at an end
    assert 350 < np.mean(held_out(1)) < 650


def test_own_test_part_is_taken_unless_a_share_is_asked_for():
    own = random_source(5).train
    source = Source(random_source(100).train, own, None, "the data", REGRESSION)
    taken = split(source, validation=0.1, test=None, seed=0)[2]
    assert taken is not None
    np.testing.assert_array_equal(taken.x, own.read(slice(0, 5))[0])
    tested = split(source, validation=0.1, test=0.2, seed=0)[2]
    assert tested is not None
    assert len(tested) == 20


@pytest.mark.parametrize(
    ("own", "share", "training", "test"),
    [(0, None, 100, "no"), (5, None, 100, "5"), (5, 0.2, 80, "20"), (5, 0.0, 100, "no")],
)
def test_the_description_counts_the_test_examples_that_are_used(own, share, training, test):
    whole = random_source(100)
    source = Source(
        whole.train, random_source(own).train if own else None, None, "the data", REGRESSION
    )
    described = prepared(source, validation=0.1, test=share).description
    expected = (
        f"the data: {training} training and {test} test examples, 4 features, 1 target (regression)"
    )
    assert described == expected


def test_the_description_counts_a_test_part_from_another_source():
    described = prepared(random_source(10), test=random_source(7)).description
    assert "10 training and 7 test examples" in described


def test_a_source_may_be_the_validation_part():
    other = random_source(5)
    train, held, _ = split(random_source(20), validation=other, test=None, seed=0)
    assert held is not None
    assert len(train) == 20
    np.testing.assert_array_equal(held.x, other.train.read(slice(0, 5))[0])


def test_holding_everything_out_is_an_error():
    with pytest.raises(DataError, match=r"holding 2 of 2 examples out.*lower data\.validation"):
        split(random_source(2), validation=0.9, test=None, seed=0)


# --- standardisation -----------------------------------------------------------------------------


def test_standardization_is_fitted_on_the_training_part_alone():
    source = random_source()
    train, held, tested = split(source, validation=0.2, test=0.1, seed=3)
    assert held
    assert tested
    found = prepared(source, validation=0.2, test=0.1, dtype="float64", seed=3)
    assert found.standardization
    mean, deviation = train.x.mean(axis=0), train.x.std(axis=0)
    np.testing.assert_allclose(found.standardization.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.standardization.deviation, deviation, rtol=1e-13)
    for part, raw in ((found.train, train), (found.validation, held), (found.test, tested)):
        assert part
        np.testing.assert_allclose(part.x, (raw.x - mean) / deviation, rtol=1e-10, atol=1e-12)
        assert part.x.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_any_type_of_file_ends_in_the_type_of_the_model(dtype):
    source = source_of((10 * np.random.default_rng(0).random((50, 3))).astype(dtype))
    for model in ("float32", "float64"):
        for standardize in (True, False):
            found = prepared(source, standardize=standardize, dtype=model)
            assert found.train.x.dtype == model
            assert found.train.x.flags.c_contiguous


def test_nothing_is_done_to_features_unless_asked():
    source = random_source(10, dtype=np.float32)
    found = prepared(source, standardize=False)
    assert found.standardization is None
    np.testing.assert_array_equal(found.train.x, source.train.read(slice(0, 10))[0])


@pytest.mark.parametrize("constant", [0.0, 5.0, 0.1, -1e9 / 3.0])
def test_zero_deviation_counts_as_1(constant):
    # summing 0.1 and dividing again is not 0.1: the deviation must be 0 all the same
    x = np.column_stack([np.full(3_000, constant), np.arange(3_000.0)])
    fitted = fit_standardization(ArrayRows(x, "x"), ALONE)
    assert fitted.deviation[0] == 1.0
    assert abs(fitted.apply(x, np.float64)[:, 0]).max() <= 1e-14 * max(1.0, abs(constant))


def test_small_differences_of_big_numbers_survive_float32():
    x = 1e9 + np.arange(8.0).reshape(8, 1)  # all the same number in float32
    found = prepared(source_of(x))
    np.testing.assert_allclose(found.train.x, (x - x.mean()) / x.std(), rtol=1e-6)


def test_tiny_deviations_are_no_division_by_zero():
    x = 1e-50 * np.arange(8.0).reshape(8, 1)  # 0 in float32
    found = prepared(source_of(x))
    np.testing.assert_allclose(found.train.x[:, 0], (np.arange(8) - 3.5) / 21**0.5 * 2, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 1_024, 1_025, 5_000])
def test_standardization_has_the_same_bits_on_any_number_of_ranks(n):
    source = random_source(n, features=3, dtype=np.float32)
    expected = prepared(source)
    assert expected.standardization
    for world_size in (2, 3, 5, 7):
        found: list[Dataset] = []

        def main(world: World, found: list[Dataset] = found) -> int:
            found.append(prepared(source, team=Team(world)))
            return 0

        assert simulate(world_size, main) == 0
        assert len(found) == world_size
        for dataset in found:
            for name in ("mean", "deviation"):
                mine = getattr(dataset.standardization, name)
                assert mine.tobytes() == getattr(expected.standardization, name).tobytes()
            assert dataset.train.x.tobytes() == expected.train.x.tobytes()


@pytest.mark.parametrize("columns", [1, 2, 63, 64, 65, 66, 128, 129, 784])
def test_the_columns_summed_at_once_change_no_bit(columns):
    x = np.random.default_rng(columns).normal(3.0, 1e3, (1_500, columns)).astype(np.float32)
    fitted = fit_standardization(ArrayRows(x, "x"), ALONE)
    whole = x.astype(np.float64)
    mean = (np.add.reduce(whole[:1_024], 0) + np.add.reduce(whole[1_024:], 0)) / 1_500
    squares = (whole - mean) ** 2
    total = np.add.reduce(squares[:1_024], 0) + np.add.reduce(squares[1_024:], 0)
    assert fitted.mean.tobytes() == mean.tobytes()
    assert fitted.deviation.tobytes() == np.sqrt(total / 1_500).tobytes()


def test_how_much_one_call_scales_changes_no_bit(monkeypatch):
    source = random_source(100)
    expected = prepared(source).train.x.tobytes()
    for elements in (1, 12, 1_000_000):
        monkeypatch.setattr(module, "CACHE_ELEMENTS", elements)
        assert prepared(source).train.x.tobytes() == expected


# --- one copy for a host -------------------------------------------------------------------------


def all_arrays(dataset: Dataset) -> list[npt.NDArray[Any]]:
    parts = (dataset.train, dataset.validation, dataset.test)
    return [array for part in parts if part for array in (part.x, part.y)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("blocks", [3, 64])
def test_any_ranks_and_blocks_fill_the_same_copy(monkeypatch, dtype, blocks):
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", blocks * 4)
    source = random_source(200, dtype=dtype)
    expected = prepared(source, validation=0.2, test=0.1)
    by_hash = set()
    for world_size in (1, 2, 3, 7):
        found: list[Dataset] = []

        def main(world: World, found: list[Dataset] = found) -> int:
            found.append(prepared(source, validation=0.2, test=0.1, team=Team(world)))
            return 0

        assert simulate(world_size, main) == 0
        by_hash |= {dataset.sha256 for dataset in found}
        for dataset in found:
            for mine, same, first in zip(
                *map(all_arrays, (dataset, expected, found[0])), strict=True
            ):
                assert mine.tobytes() == same.tobytes()
                assert np.shares_memory(mine, first)
    assert len(by_hash) == 1


def test_where_memory_cannot_be_shared_every_rank_says_so_and_has_its_own(monkeypatch):
    monkeypatch.setattr(
        "ddpbp.comm.simulated.SimulatedWorld.share_whole",
        lambda world, bytes_, folder="": (None, f"{folder or 'memory'} is full"),
    )
    source, lines, found = random_source(50), list[str](), list[Dataset]()

    def main(world: World) -> int:
        found.append(prepared(source, team=Team(world, "/scratch", lines.append)))
        return 0

    assert simulate(2, main) == 0
    assert not np.shares_memory(found[0].train.x, found[1].train.x)
    assert found[0].train.x.tobytes() == found[1].train.x.tobytes()
    assert [line.partition(": ")[2] for line in lines] == [
        "memory is full",
        "/scratch is full",
        "every rank keeps a copy of its own; set data.cache to a folder with more space",
    ]


def test_what_does_not_fit_in_memory_is_mapped_from_a_file_or_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("ddpbp.engine.team.memory_left_bytes", lambda: 1_000)
    source, lines = random_source(50), list[str]()
    found = prepared(source, team=Team(World(), str(tmp_path), lines.append))
    assert f"mapping a file in {tmp_path}" in lines[0]
    assert found.train.x.tobytes() == prepared(source).train.x.tobytes()
    assert not [*tmp_path.iterdir()]
    with pytest.raises(DataError, match=r"/gone: No such file.*set data\.cache"):
        prepared(source, team=Team(World(), str(tmp_path / "gone"), lines.append))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_the_type_of_the_source_is_kept_and_gives_the_same_numbers(dtype):
    source = random_source(200, dtype=dtype)
    usual, kept = (prepared(source, validation=0.3, keep_type=keep) for keep in (False, True))
    assert kept.train.x.dtype == dtype
    assert kept.sha256 == usual.sha256
    for mine, same in ((kept.train, usual.train), (kept.validation, usual.validation)):
        assert mine
        assert same
        assert mine.scale
        assert mine.scale.apply(mine.x, "float32").tobytes() == same.x.tobytes()


def test_the_first_row_that_is_wrong_is_named_by_any_number_of_ranks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 16)
    x = np.ones((100, 4))
    x[[31, 77], [2, 1]] = np.nan, np.inf
    for world_size in (1, 2, 3):

        def main(world: World) -> int:
            with pytest.raises(DataError, match=r"x: row 31, column 2 \(from 0\) is nan"):
                prepared(source_of(x), team=Team(world))
            return 0

        assert simulate(world_size, main) == 0


# --- what cannot be learned from -----------------------------------------------------------------


def test_features_beyond_the_range_of_the_model_are_an_error():
    x = np.array([[1.0, 2.0], [3.0, 1e39]])
    with pytest.raises(DataError, match="the data: a feature is beyond the range of float32"):
        prepared(source_of(x), standardize=False)
    assert prepared(source_of(x), standardize=False, dtype="float64").train.x[1, 1] == 1e39
    assert np.isfinite(prepared(source_of(x)).train.x).all()  # scaled down first


def test_test_features_beyond_the_range_are_an_error_too():
    test = examples_of(np.array([[-1e60, 0.0]]), np.zeros((1, 1)))
    with pytest.raises(DataError, match="a feature is beyond the range of float32"):
        prepared(source_of(np.random.default_rng(0).random((9, 2)), test=test))


def test_targets_beyond_the_range_of_the_model_are_an_error():
    source = source_of(np.arange(4.0).reshape(2, 2), np.array([[0.0], [-1e39]]))
    with pytest.raises(DataError, match="a target is beyond the range of float32"):
        prepared(source)


def test_features_too_large_to_be_squared_are_an_error():
    x = np.array([[1.0, 1e200], [2.0, -1e200]])
    with pytest.raises(DataError, match=r"feature 1 \(from 0\).*too large"):
        prepared(source_of(x), dtype="float64")


def test_one_class_alone_is_an_error():
    part = examples_of(np.zeros((3, 2)), np.array([1, 1, 1]))
    with pytest.raises(DataError, match="all 3 training examples are of class 'b'"):
        prepared(Source(part, None, ("a", "b"), "the data", CLASSIFICATION))


def test_other_columns_in_the_held_out_part_are_an_error():
    with pytest.raises(DataError, match=r"data\.validation has 3 features, the training part 4"):
        prepared(random_source(9), validation=random_source(9, features=3))


def test_classes_of_another_source_are_matched_by_name():
    x = np.zeros((3, 1))
    mine = Source(
        examples_of(x, np.array([0, 1, 2])), None, ("a", "b", "c"), "mine", CLASSIFICATION
    )
    other = Source(examples_of(x, np.array([0, 1, 1])), None, ("c", "a"), "other", CLASSIFICATION)
    found = prepared(mine, validation=other)
    assert found.validation
    assert found.validation.y.tolist() == [2, 0, 0]
    strange = Source(examples_of(x, np.array([0, 1, 1])), None, ("a", "d"), "other", CLASSIFICATION)
    with pytest.raises(DataError, match=r"other: class 'd' does not occur.*a, b, c"):
        prepared(mine, validation=strange)
