"""Basis of all other layers: settings, component types, random numbers, files, processes and errors."""
