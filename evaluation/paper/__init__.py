"""The tables of Ko et al., "Sequence Matters", AAAI 2025, made anew on full data and set beside the published cells.

study.py writes the study file that `evaluation.study` carries out, tables.py turns its results into tables,
`python -m evaluation.paper` (scripts/reproduce_tables.sh) checks data and weights and does both.
"""
