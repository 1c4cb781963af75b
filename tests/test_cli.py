"""The ``sgdcov`` command dispatches, says what is missing, and ends with the right code and without tracebacks."""

import os
import signal
import subprocess
import sys
import time

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


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--seed=x", 2)])
def test_options_are_read_before_anything_slow_is_imported(python, argument, code):
    script = (
        "import sys; from sgdcov.cli import main\n"
        f"try: main(['verify', {argument!r}])\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'sympy', 'numpy', 'rich', 'sklearn'} & set(sys.modules)), file=sys.stderr)"
    )
    result = python("-c", script)
    assert result.stderr.splitlines()[-1] == f"{code} []"
    assert ("--quick" in result.stdout) == (code == 0)


def verify_with(body):
    """A program that runs ``sgdcov verify`` where the command's module is replaced by this one."""
    return (
        "import importlib, sys, time, types\n"
        "from sgdcov import cli\n"
        f"def load(name):\n    {body}\n"
        "cli.importlib = types.SimpleNamespace(import_module=load, util=importlib.util)\n"
        "sys.exit(cli.main(['verify']))"
    )


def test_an_interrupt_during_imports_is_quiet():
    script = verify_with("print('importing', flush=True); time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "importing\n"
    time.sleep(0.1)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert (run.returncode, errors) == (130, "")


@pytest.mark.parametrize(
    ("raised", "code", "lines"), [("KeyboardInterrupt()", 130, 0), ("BrokenPipeError(32, 'Broken pipe')", 3, 1)]
)
def test_what_ends_a_run_early_is_no_traceback(python, raised, code, lines):
    fail = f"types.SimpleNamespace(main=lambda argv: (_ for _ in ()).throw({raised}))"
    result = python("-c", verify_with(f"return {fail}"))
    assert result.returncode == code
    assert len(result.stderr.splitlines()) == lines


def test_a_full_disk_is_code_3_and_one_line(python):
    # What is printed stays in a buffer; the disk is found to be full when that is written.
    full = "sys.stdout.flush = lambda: (_ for _ in ()).throw(OSError(28, 'No space left on device'))"
    script = verify_with(f"{full}; return types.SimpleNamespace(main=lambda argv: print('verdict') or 0)")
    result = python("-c", script.replace("import importlib,", "import io, importlib,", 1))
    assert result.returncode == 3
    assert result.stderr == "sgdcov verify: cannot write: No space left on device\n"
