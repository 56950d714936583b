"""Cost optimisation: tariffs, forecasts, the optimiser. Pure."""
