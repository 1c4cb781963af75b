"""A fuzz of every public function of numerics against an oracle of its own: ``python -m tests.fuzz --help``."""
