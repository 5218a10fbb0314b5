"""The plugin host: discovery and loading of plugins, their slots, and the context of their components."""
