"""Comparison of runs, pictures, the HTML report, and live curves in the terminal."""

from ltg_mdlm.reporting.html_report.page import Extent, write_report
from ltg_mdlm.reporting.run_table import find_runs

__all__ = ["Extent", "find_runs", "write_report"]
