"""Devices on serial lines."""
