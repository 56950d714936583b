"""Batteries behind an IEC 61850 server; the protocol itself runs in a program of its own (`iec61850_bridge`)."""
