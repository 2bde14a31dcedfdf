"""Ground layer: errors, atomic files, locks, progress, randomness, provenance. It knows no word of the domain."""
