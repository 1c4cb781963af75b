"""Filled by its modules."""

from .. import __version__ as __version__
