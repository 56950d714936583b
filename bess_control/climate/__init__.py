"""Climate of cabinets: zones with fans, heaters and heater boards, and what it allows the batteries."""
