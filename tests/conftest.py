"""What every test shares: one thread per process, figures without a screen, fixed hypothesis examples."""

import os
import subprocess
import sys
from pathlib import Path

# Before NumPy or torch is imported; pytest-xdist's workers inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

LAYERS = ("theory", "numerics", "validation")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("fixed")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not (item.get_closest_marker("early") or item.path.suffix == ".ipynb"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def python(root):
    """Run this interpreter in a process of its own: ``python("-c", "...", path=folder first on sys.path)``."""

    def run(*arguments, path="", cwd=root):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(path)},
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="session")
def linked_package(root, tmp_path_factory):
    """A folder that holds the package ``sgdcov`` as links, for tools that cannot follow an editable install."""
    folder = tmp_path_factory.mktemp("links")
    package = folder / "sgdcov"
    package.mkdir()
    for source in [*(root / "src" / "sgdcov").glob("*.*"), *(root / layer for layer in LAYERS)]:
        (package / source.name).symlink_to(source)
    return folder
