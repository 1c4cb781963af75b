"""The law of the iterates of discrete-time SGD near a minimum, three times over.

========================  ==============================================================
``sgdcov.theory``         derives closed forms from the update rule and proves them (SymPy)
``sgdcov.numerics``       solves the Stein equation for given arrays (NumPy, SciPy)
``sgdcov.validation``     measures real runs, with standard errors (PyTorch)
========================  ==============================================================

The same question bears the same name in each layer; ``sgdcov verify`` checks that the answers agree.
"""

from . import errors

__all__ = ["__version__", "errors"]

__version__ = "0.1.0"
