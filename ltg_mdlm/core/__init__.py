"""Settings, component types, randomness, files, processes, errors: what every other layer uses."""
