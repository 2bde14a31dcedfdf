"""Settings: one frozen dataclass a concern is the only place where a default stands; flags and TOML derive from it."""
