"""Drivers: one folder per protocol family."""
