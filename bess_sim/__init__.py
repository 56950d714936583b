"""The virtual bench: physics and devices that speak the real protocols."""
