"""The commands that apply a trained model: eval and predict."""

from pathlib import Path

import click

from ddpbp.base import blas
from ddpbp.cli.options import WorldOptions, world_options
from ddpbp.cli.process import print_notes
from ddpbp.comm.world import World
from ddpbp.store.model_file import StoredModel, read_kernel, read_model


def read_on_its_kernel(path: Path, world: World) -> StoredModel:
    """Read a model on all ranks, after choosing the BLAS kernel that it was trained on.

    Rank 0 prints a note if another kernel has to be used.
    """
    with world.together():
        kernel = read_kernel(path)
    print_notes(world, blas.use_kernel(kernel))
    with world.together():
        return read_model(path)


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@world_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, data: str | None, where: WorldOptions, as_json: bool) -> int:
    """Score MODEL (a run folder or a model file) on its own test data, or on DATA (a path)."""

    def main(world: World) -> int:
        import msgspec

        stored = read_on_its_kernel(model, world)
        from ddpbp.run.output import print_text
        from ddpbp.tools.apply import score

        scores = score(stored, data, world)
        with world.together():
            if world.rank == 0 and as_json:
                print_text(msgspec.json.encode(scores).decode())
            elif world.rank == 0:
                print_text("\n".join(f"{key:<12} {value:.6g}" for key, value in scores.items()))
        return 0

    return where.run(main)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@world_options
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="A .csv, .npy or .parquet file; else standard output.",
)
def predict(model: Path, data: Path, where: WorldOptions, output: Path | None) -> int:
    """Apply MODEL (a run folder or a model file) to the rows of DATA."""

    def main(world: World) -> int:
        stored = read_on_its_kernel(model, world)
        from ddpbp.tools.apply import predict_to
        from ddpbp.tools.predictions import require_writable_name

        with world.together():
            require_writable_name(output)
        predict_to(stored, str(data), output, world)
        return 0

    return where.run(main)
