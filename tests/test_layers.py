"""theory <- numerics <- validation: no import points back, and only validation needs torch."""

import shutil

import pytest

HEAVY = ("torch", "sklearn", "rich")


def lint_imports(python, root, folder):
    return python(
        *("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"),
        *("--config", root / "pyproject.toml", "--no-cache"),
        path=folder,
        cwd=folder,
    )


def test_no_import_points_back(python, root, linked_package):
    result = lint_imports(python, root, linked_package)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("theory", "from sgdcov import numerics"),
        ("numerics", "from sgdcov import validation"),
        ("numerics", "import torch"),
        ("theory", "import numpy"),
    ],
)
def test_an_import_that_points_back_is_found(python, root, linked_package, tmp_path, layer, line):
    package = shutil.copytree(linked_package / "sgdcov", tmp_path / "sgdcov")
    (package / layer / "wrong.py").write_text(f"{line}\n")
    result = lint_imports(python, root, tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"sgdcov.{layer}.wrong" in result.stdout


@pytest.mark.parametrize("layer", ["theory", "numerics"])
def test_theory_and_numerics_import_without_the_extra(python, layer):
    result = python("-c", f"import sys, sgdcov.{layer}; print(sorted({set(HEAVY)} & set(sys.modules)))")
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
