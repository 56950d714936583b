"""Measured figures: `make bench` prints a table and writes `bench/results.json`.

Absolute times depend on the machine and what else it does, so comparisons are ratios within one run.
"""
