"""The one thing pyproject.toml cannot say: find the packages of the three layers AND rename them."""

from setuptools import find_packages, setup

LAYERS = ("theory", "numerics", "validation")
found = find_packages(include=[pattern for layer in LAYERS for pattern in (layer, f"{layer}.*")])
setup(
    packages=["sgdcov", *(f"sgdcov.{name}" for name in found)],
    package_dir={"sgdcov": "src/sgdcov", **{f"sgdcov.{layer}": layer for layer in LAYERS}},
)
