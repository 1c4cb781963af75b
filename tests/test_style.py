"""The code is ruff-clean and its types check: the two linters, run as a reader of the tests expects."""


def mypy(python, root, *arguments, cwd):
    config = ("--config-file", root / "pyproject.toml", "--cache-dir", root / ".mypy_cache")
    return python("-m", "mypy", *config, *arguments, cwd=cwd)


def test_ruff_finds_nothing(python):
    result = python("-m", "ruff", "check", "--no-cache", ".")
    assert result.returncode == 0, result.stdout + result.stderr


def test_types_check(python, root, linked_package):
    result = mypy(python, root, "-p", "sgdcov", cwd=linked_package)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_wrong_type_is_found(python, root, linked_package, tmp_path):
    (tmp_path / "wrong.py").write_text("from sgdcov import __version__\n\nversion: int = __version__\n")
    (tmp_path / "sgdcov").symlink_to(linked_package / "sgdcov")
    result = mypy(python, root, "wrong.py", cwd=tmp_path)
    assert "wrong.py:3: error" in result.stdout, result.stdout + result.stderr
