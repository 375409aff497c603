"""The BLAS threads and kernel, set before NumPy is imported: afterwards the kernel stays as it is.

A matrix product of fixed shape has the same bits in every process, but not with another number of
BLAS threads or another BLAS kernel. So BLAS always runs one thread (parallelism is over whole
leaves), and the kernel is a setting.
"""

import os
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

_ASKED = {name: os.environ.get(name) for name in THREAD_VARIABLES}


def limit_threads() -> None:
    """Give BLAS one thread, whatever the environment asks for."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(1, "blas")


def overridden() -> list[str]:
    """Return a note on every setting of the environment that `limit_threads` overrides."""
    return [
        f"{name}={value} is overridden by 1: the bits depend on it"
        for name, value in _ASKED.items()
        if value not in (None, "1")
    ]


def use_kernel(name: str) -> list[str]:
    """Choose the BLAS kernel of this process; return notes on what was changed or is too late.

    Parameters
    ----------
    name : str
        "native" is the machine's own, "haswell" the one that all x86 machines since 2013 share.
    """
    wanted = HASWELL if name == "haswell" else dict.fromkeys(HASWELL)
    differing = {key: v for key, v in wanted.items() if os.environ.get(key) != v}
    if not differing:
        return []
    if "numpy" in sys.modules:
        return [
            f'kernel = "{name}" has no effect, and the bits may differ: NumPy is loaded and keeps '
            "its kernel; choose one before NumPy is imported, one for each process"
        ]
    notes = []
    for key, value in differing.items():
        if value is None:
            notes.append(f'{key} is removed from the environment; set kernel = "haswell" instead')
            del os.environ[key]
        else:
            os.environ[key] = value
    return notes


def fingerprint() -> dict[str, Any]:
    """Return what the bits depend on besides configuration and data: for comparison by eye."""
    import platform

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
