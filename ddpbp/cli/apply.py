"""The commands that apply a trained model: eval and predict."""

from pathlib import Path

import click

from ddpbp.cli.options import WorldOptions, world_options
from ddpbp.comm.world import World


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@world_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(model: Path, data: str | None, where: WorldOptions, as_json: bool) -> int:
    """Score MODEL (a run folder or a model file) on its own test data, or on DATA (a path)."""

    def main(world: World) -> int:
        import msgspec

        from ddpbp.run.report import say
        from ddpbp.tools.apply import score_file

        scores = score_file(model, data, world)
        with world.together():
            if world.rank == 0 and as_json:
                say(msgspec.json.encode(scores).decode())
            elif world.rank == 0:
                say("\n".join(f"{key:<12} {value:.6g}" for key, value in scores.items()))
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
    help="A .csv or .npy file; else standard output.",
)
def predict(model: Path, data: Path, where: WorldOptions, output: Path | None) -> int:
    """Apply MODEL (a run folder or a model file) to the rows of DATA."""

    def main(world: World) -> int:
        from ddpbp.tools.apply import predict_file

        predict_file(model, data, output, world)
        return 0

    return where.run(main)
