"""SunSpec batteries and inverters."""
