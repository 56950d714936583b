"""Devices on a CAN bus: channels, frame sets, and batteries described by a DBC file."""
