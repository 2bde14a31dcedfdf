"""Ground layer: errors, atomic files, locks, progress, randomness, provenance. It knows no word of the domain."""

__version__ = "0.1.0"
