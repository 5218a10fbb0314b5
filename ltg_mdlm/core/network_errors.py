"""Failures to reach a server, whichever package huggingface_hub uses to access the network."""

from __future__ import annotations

_PACKAGES = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")


def is_network_error(error: Exception) -> bool:
    """Whether an exception says that a server could not be reached."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in _PACKAGES
