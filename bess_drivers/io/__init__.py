"""Inputs and outputs of the computer itself: pins, analog values, climate sensors, clocks, watchdogs."""
