"""Control modes, one module each."""
