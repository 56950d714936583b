"""Grid support functions: curves of voltage, frequency and power (IEEE 1547-2018, SunSpec 705, 706, 711, 712)."""
