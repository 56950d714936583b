"""Devices that speak JSON over HTTP."""
