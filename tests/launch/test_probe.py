"""What MPI leaves in /dev/shm is removed, unless it is in use."""

import mmap
import time

from launch import probe


def test_leftovers_of_mpi_are_swept_but_not_segments_in_use(tmp_path):
    left, used, young = (tmp_path / f"mpich_shm_{name}" for name in ("left", "used", "young"))
    for file in (left, used):
        file.write_bytes(b"x" * 4096)
    time.sleep(probe.YOUNG_SECONDS + 0.1)
    young.write_bytes(b"x" * 4096)
    with used.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        assert probe.sweep(tmp_path) == [left.name]
    assert used.exists()
    assert young.exists()
