"""The command line: one file per group of commands."""

from ltg_mdlm.cli.errors import end_on_ctrl_c

# Before any command is imported, which takes a second.
end_on_ctrl_c()
