"""Hardware profiles, one device per TOML file."""
