"""Ground floor: value types, node base class, site file, composition and CLI."""
