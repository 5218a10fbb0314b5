"""`ltg-mdlm plugins new`: write the distribution of a new plugin from the jinja2 templates in `templates/`."""

from typing import Literal

Kind = Literal["masking", "schedule", "objective", "conditioning", "observer", "order"]
"""What a new plugin provides."""
