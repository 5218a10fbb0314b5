"""The plugin host: discovery and loading of plugins, the slots they fill, and the context that they get."""
