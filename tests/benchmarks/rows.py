"""Memory and time of loading: one copy of the data for the ranks of a host.

    pip install -e '.[mpich]'
    python -m tests.benchmarks.rows                (--gigabytes 2 --ranks 1,2,8)
    python -m tests.benchmarks.rows --source fashion-mnist

Memory is the greatest sum over all ranks of Pss_Anon and Pss_Shmem, in which a page that several
share counts once, sampled while they load; "beside Python" is without that of as many ranks with
the digits. Time is that of the whole process. A table is made of float32 numbers, 64 columns.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SAMPLE_SECONDS = 0.1
COLUMNS = 64


def pss_kib(process: Path) -> int:
    """Return the memory of a process that is no file's."""
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(x.split()[1]) for x in lines if x.startswith(("Pss_Anon", "Pss_Shmem")))


def ranks_of(mark: str) -> list[Path]:
    """Return the processes of the ranks of a run, which have `mark` in their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in words and b"mpirun" not in words:
                found.append(process)
    return found


def measure(source: str, ranks: int, folder: Path) -> tuple[float, float]:
    """Load a source on some ranks; return the peak in MiB and the seconds."""
    output = str(folder / f"run {ranks}")
    mpirun = shutil.which("mpirun", path=Path(sys.executable).parent) or "mpirun"
    command = [] if ranks == 1 else [mpirun, "-n", str(ranks)]
    command += [sys.executable, "-m", "ddpbp", "train", f"data.source={source}", "epochs=0"]
    command += ["threads=1", "batch_size=4096", f"output={output}", "--overwrite"]
    if source.endswith(".npy"):
        command.append("loss.name=squared_error")
    began, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as job:
        while job.poll() is None:
            peak = max(peak, sum(map(pss_kib, ranks_of(output))))
            time.sleep(SAMPLE_SECONDS)
    if job.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {job.returncode}")
    return peak / 1024, time.monotonic() - began


def make_table(path: Path, gigabytes: float) -> None:
    """Write random numbers, a part at a time."""
    rows, at_once = int(gigabytes * 1e9 / 4 / COLUMNS), 100_000
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, COLUMNS)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, at_once):
            shape = (min(at_once, rows - start), COLUMNS)
            file.write(random.standard_normal(shape, np.float32).tobytes())


def main(arguments: Sequence[str]) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="instead of a table of random numbers")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--ranks", default="1,2,8")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = options.source or str(folder / "table.npy")
        if not options.source:
            make_table(Path(source), options.gigabytes)
        print(f"{'ranks':>5}  {'MiB':>7}  {'beside Python':>13}  {'seconds':>7}")
        for ranks in map(int, options.ranks.split(",")):
            bare, _ = measure("digits", ranks, folder)
            peak, seconds = measure(source, ranks, folder)
            print(f"{ranks:>5}  {peak:>7,.0f}  {peak - bare:>13,.0f}  {seconds:>7.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
