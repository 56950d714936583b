"""Decisions: modes, power manager, site state machine."""
