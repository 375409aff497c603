"""Pin what the bits depend on, before NumPy is imported: afterwards it does nothing.

A matrix product of fixed shape has the same bits in every process, but not with another number of
BLAS threads or another BLAS kernel. So threads are always 1 (parallelism is over whole leaves),
and the kernel is a setting.
"""

import os
import platform
import sys
from typing import Any

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# One kernel for all x86 machines since 2013, for BLAS and for NumPy's own loops.
HASWELL = {
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}

notes: list[str] = []
"""What had to be overridden or could not be settled; rank 0 says it once."""


def threads() -> None:
    """Give BLAS one thread."""
    for name in THREAD_VARIABLES:
        found = os.environ.get(name)
        os.environ[name] = "1"
        if found not in (None, "1"):
            notes.append(f"{name}={found} is overridden by 1: the bits depend on it")
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")


def kernel(name: str) -> None:
    """Choose the BLAS kernel: "native" is the machine's own, "haswell" one all share."""
    wanted = HASWELL if name == "haswell" else dict.fromkeys(HASWELL)
    differing = {key: v for key, v in wanted.items() if os.environ.get(key) != v}
    if not differing:
        return
    if "numpy" in sys.modules:
        notes.append(
            f'kernel = "{name}" has no effect: NumPy was imported before ddpbp could set '
            + ", ".join(differing)
        )
        return
    for key, value in differing.items():
        if value is None:
            notes.append(f'{key} is removed from the environment; set kernel = "haswell" instead')
            del os.environ[key]
        else:
            os.environ[key] = value


def fingerprint() -> dict[str, Any]:
    """Return what the bits depend on besides configuration and data: for comparison by eye."""
    import numpy as np
    from threadpoolctl import threadpool_info

    features = np._core._multiarray_umath.__cpu_features__  # type: ignore[attr-defined]
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": [
            {
                "name": library["internal_api"],
                "version": library["version"],
                "kernel": library.get("architecture"),
                "threads": library["num_threads"],
            }
            for library in threadpool_info()
            if library["user_api"] == "blas"
        ],
        "cpu": platform.machine(),
        "cpu_features": [name for name, present in features.items() if present],
    }
