"""Three folders at the top of the repository, one package when installed."""

import importlib.metadata
import re
import shutil
import tarfile
import zipfile

import pytest

import sgdcov

LAYERS = ("theory", "numerics", "validation")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".venv", ".git", ".*_cache")


@pytest.fixture(scope="module")
def built(python, root, tmp_path_factory):
    """An sdist built from a copy of the tree, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    tree = shutil.copytree(root, folder / "tree", ignore=NOT_SOURCE)  # a stale build/ would end up in the wheel
    result = python("-m", "build", "--no-isolation", "--outdir", folder, tree)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def source_files(root):
    """The files of the package: where they stand in the tree, by where they are installed."""
    folders = {"sgdcov": root / "src" / "sgdcov", **{f"sgdcov/{layer}": root / layer for layer in LAYERS}}
    return {
        f"{installed}/{file.relative_to(folder).as_posix()}": file
        for installed, folder in folders.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_tree_and_nothing_else(built, source_files):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == set(source_files)
        assert {name.split("/")[0] for name in files} == {"sgdcov"}
        assert all(archive.read(name) == file.read_bytes() for name, file in source_files.items())
    assert "sgdcov/py.typed" in files


def test_the_wheel_imports(built, python, tmp_path):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    names = ", ".join(f"sgdcov.{layer}" for layer in LAYERS)
    result = python("-c", f"import {names}; print(sgdcov.numerics.__file__)", path=tmp_path, cwd=tmp_path)
    assert result.stdout.startswith(str(tmp_path)), result.stderr


def test_the_sdist_holds_what_the_tests_need(built, root, source_files):
    _, sdist = built
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    top = {"pyproject.toml", "setup.py", "constraints.txt", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"}
    tests = {path.relative_to(root).as_posix() for path in (root / "tests").rglob("*.py")}
    package = {path.relative_to(root).as_posix() for path in source_files.values()}
    assert top | tests | package <= files


@pytest.mark.parametrize("layer", LAYERS)
def test_a_bare_import_from_the_checkout_fails_at_once(python, root, layer):
    result = python("-c", f"import {layer}", path=root)
    assert "ImportError: attempted relative import beyond top-level package" in result.stderr


def test_the_version_stands_in_one_place(built, root):
    wheel, _ = built
    assert wheel.name.split("-")[1] == sgdcov.__version__
    assert importlib.metadata.version("sgdcov") == sgdcov.__version__, "installed before the version changed: reinstall"
    sources = [root / name for name in ("pyproject.toml", "setup.py", "CITATION.cff")]
    sources += [file for folder in ("src", *LAYERS) for file in (root / folder).rglob("*.py")]
    pattern = re.compile(rf"(?<![\w.]){re.escape(sgdcov.__version__)}(?![\w.])")
    assert [file for file in sources if pattern.search(file.read_text("utf-8"))] == [root / "src/sgdcov/__init__.py"]


def test_ci_runs_the_command_of_the_readme(root):
    command = (root / ".ci" / "run").read_text("utf-8").rstrip().splitlines()[-1]
    assert "pytest" in command
    assert command in (root / "README.md").read_text("utf-8").splitlines()
