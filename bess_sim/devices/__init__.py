"""Simulated devices, each in a process of its own."""
