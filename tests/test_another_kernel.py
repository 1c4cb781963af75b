"""No test depends on the processor: what compares floats in numerics runs once more on another BLAS kernel.

OpenBLAS picks its kernel by the processor when it is loaded, and every kernel rounds in its own way.  A test that
holds on one of them by chance (two floats compared with ``==``) fails on another.
"""

import os
import platform
import subprocess
import sys

import pytest
import threadpoolctl

#: Kernels that every processor of the architecture can run, and that differ from what OpenBLAS picks on a newer one.
OLDEST = {"x86_64": ("Prescott", "Nehalem"), "amd64": ("Prescott", "Nehalem"), "aarch64": ("ARMV8", "CORTEXA53")}

#: Exact or elementwise arithmetic that no BLAS has a part in, and estimates whose thresholds are standard errors.
LEFT_OUT = {"test_arrays.py", "test_oracle.py", "test_polynomial.py", "test_schedules.py", "test_tails.py"}
PARTS = 3

REPORT = (
    "import numpy, scipy.linalg, threadpoolctl; "
    "print(*(m['architecture'] for m in threadpoolctl.threadpool_info() if m['internal_api'] == 'openblas'))"
)


def kernels(environment):
    """The kernels that a process of this environment computes with; empty where BLAS is not OpenBLAS."""
    told = subprocess.run(
        [sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert told.returncode == 0, told.stderr
    return told.stdout.split()


@pytest.fixture(scope="module")
def elsewhere():
    """The environment of a process on another kernel, with one thread, and without this run's pytest and xdist."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    here = kernels(own)
    own |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
    if not here:  # MKL obeys MKL_CBWR; Accelerate has one kernel only, with which one thread is what can be changed
        assert not any(m["internal_api"] == "openblas" for m in threadpoolctl.threadpool_info())
        return own
    tried = {}
    for name in OLDEST[platform.machine().lower()]:
        tried[name] = kernels({**own, "OPENBLAS_CORETYPE": name})
        if not set(tried[name]) & set(here):
            return {**own, "OPENBLAS_CORETYPE": name}
    raise AssertionError(f"OpenBLAS computes with {here} and would not with another kernel: {tried}")


@pytest.mark.early
@pytest.mark.parametrize("part", range(PARTS))
def test_numerics_holds_on_another_kernel(part, elsewhere, root):
    files = sorted(f for f in (root / "tests" / "numerics").glob("test_*.py") if f.name not in LEFT_OUT)
    files = files[part::PARTS]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *files],
        env=elsewhere,
        cwd=root,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, f"{elsewhere.get('OPENBLAS_CORETYPE')}:\n{run.stdout}\n{run.stderr}"


def test_what_is_left_out_exists(root):
    assert {f.name for f in (root / "tests" / "numerics").glob("test_*.py")} >= LEFT_OUT
