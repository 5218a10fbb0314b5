"""Print every broken plugin, the check that fails and its message: `python tests/support/broken_plugins_table.py`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.installed import BROKEN_PLUGINS, plugins_installed

from ltg_mdlm.host.discovery import installed_plugins
from ltg_mdlm.testing.plugin_under_test import Examination, PluginUnderTest
from ltg_mdlm.testing.training_checks import CHECKS


def main() -> None:
    """Examine every plugin of the distribution; a correct one has a line without a check."""
    print("| plugin | check that fails | message |\n|---|---|---|")
    with plugins_installed(BROKEN_PLUGINS):
        names = [name for name, (first, *_) in installed_plugins().items() if first.distribution == "broken-plugins"]
        for name in sorted(names):
            examination = Examination(PluginUnderTest(name))
            failed = [v for v in map(examination.verdict, CHECKS) if v.outcome == "failed"]
            for verdict in failed:
                message = " ".join(line.strip() for line in verdict.reason.splitlines()[1:])
                print(f"| `{name}` | {verdict.check.title} | {message.replace('|', '/')} |", flush=True)
            if not failed:
                print(f"| `{name}` (correct) | | |", flush=True)


if __name__ == "__main__":
    main()
