"""`ltg-mdlm plugins new`: a complete distribution of a plugin, from templates that are working code themselves.

kinds/          one plugin module and its tests for each kind, checked and tested like everything else here
distribution/   what a distribution has besides
names.py        from the name a user gives to those of plugin, distribution, module and class
write.py        templates with these names in place of the stand-ins my_plugin, my-plugin and MyPlugin
"""

from typing import Literal

Kind = Literal["masking", "schedule", "objective", "conditioning", "observer"]
"""What a new plugin provides."""
