"""Each layer's ``__init__`` is its whole public API: explicit, complete and documented."""

import ast
import importlib
import inspect
import re

import pytest

LAYERS = ("theory", "numerics", "validation")
PACKAGES = ("sgdcov", "sgdcov.errors", *(f"sgdcov.{layer}" for layer in LAYERS))


def exported():
    for package in PACKAGES:
        for name in vars(importlib.import_module(package)).get("__all__", ()):
            if not name.startswith("__"):
                yield pytest.param(package, name, id=f"{package}.{name}")


@pytest.mark.parametrize("layer", LAYERS)
def test_an_init_only_exports(root, layer):
    docstring, *statements = ast.parse((root / layer / "__init__.py").read_text("utf-8")).body
    assert isinstance(docstring, ast.Expr)
    first, *_ = statements
    assert ast.unparse(first) == "from .. import __version__ as __version__"
    for statement in statements:
        relative_import = isinstance(statement, ast.ImportFrom) and statement.level
        all_list = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        assert relative_import or all_list, ast.unparse(statement)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_a_set_of_names_that_exist(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(("package", "name"), list(exported()))
def test_a_public_name_is_documented(package, name):
    thing = getattr(importlib.import_module(package), name)
    if inspect.isfunction(thing):
        assert undocumented(thing) == []
    elif inspect.isclass(thing):
        assert thing.__doc__
        members = {key: getattr(thing, key) for key in vars(thing) if not key.startswith("_")}
        assert [key for key, member in members.items() if callable(member) and not inspect.getdoc(member)] == []
    elif not isinstance(thing, tuple):  # tuples are documented where the index names them
        assert thing.__doc__
        assert thing.__doc__ != type(thing).__doc__


def undocumented(function):
    """List what numpydoc would miss: sections, and parameters in the section of that name."""
    text = inspect.getdoc(function) or ""
    sections = dict(re.findall(r"^(\w+)\n-{3,}\n(.*?)(?=^\w+\n-{3,}\n|\Z)", text, re.MULTILINE | re.DOTALL))
    signature = inspect.signature(function)
    wanted = ["Examples"]
    if signature.parameters:
        wanted.append("Parameters")
    if signature.return_annotation not in (None, "None"):
        wanted.append("Returns")
    missing = [section for section in wanted if section not in sections]
    described = re.findall(r"^(\S.*?)(?: *:.*)?$", sections.get("Parameters", ""), re.MULTILINE)
    documented = {part.strip().lstrip("*") for line in described for part in line.split(",")}
    return missing + [f"parameter {name}" for name in signature.parameters if name not in documented]


def test_an_undocumented_function_is_found():
    def power(base: float, exponent: float) -> float:
        """Return base**exponent.

        Parameters
        ----------
        base : float
        """

    assert undocumented(power) == ["Examples", "Returns", "parameter exponent"]
