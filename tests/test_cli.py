"""The ``sgdcov`` command dispatches, and says what is missing."""

import pytest

import sgdcov
from sgdcov.cli import main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sgdcov {sgdcov.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["prove"]], ids=str)
def test_a_wrong_call_shows_the_usage(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(argument in captured.err for argument in [*arguments, "usage:", "verify"])


@pytest.mark.parametrize(("module", "package"), [("torch", "torch"), ("sklearn", "scikit-learn"), ("rich", "rich")])
def test_without_the_extra_verify_says_what_to_install(python, module, package):
    script = f"import sys; sys.modules[{module!r}] = None; from sgdcov.cli import main; sys.exit(main(['verify']))"
    result = python("-c", script)
    assert result.returncode == 2, result.stderr
    assert f"needs {package}" in result.stderr
    assert "pip install 'sgdcov[validation]'" in result.stderr
