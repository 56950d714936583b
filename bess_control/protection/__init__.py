"""Protection: what faults of any node make the site do, monitors, emergency stop, watchdog."""
