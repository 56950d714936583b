"""SMBus and I2C: the bus, smart battery commands, gauges."""
