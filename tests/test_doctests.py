"""Every example in a docstring and in the README runs and shows what it says."""

import doctest
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("sgdcov", "sgdcov.theory", "sgdcov.numerics", "sgdcov.validation")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    """Name every module, from the folders on each package's own ``__path__`` and without importing anything."""
    for package in PACKAGES:
        for folder in map(Path, find_spec(package).submodule_search_locations):
            for file in sorted(folder.rglob("*.py")):
                parts = file.relative_to(folder).with_suffix("").parts
                yield ".".join((package, *(part for part in parts if part != "__init__")))


# In a normal install the layers are found below sgdcov as well as by their own names.
@pytest.mark.parametrize("name", sorted(set(modules())))
def test_docstrings(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, optionflags=FLAGS)
    assert outcome.failed == 0


def test_an_example_that_is_wrong_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test, out=lambda text: None).failed == 1


def test_readme(root):
    blocks = re.findall(r"^```python\n(.*?)^```", (root / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", "README.md", 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0
