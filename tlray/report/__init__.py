"""What people read after a run: tables for the terminal and report.html, one file that needs no network.

uri = write_report(run_uri)
console.print(leaderboard_table(leaderboard))
"""

from tlray.report.html import write_report
from tlray.report.models_table import models_table
from tlray.report.tables import evaluation_table, leaderboard_table

__all__ = ["evaluation_table", "leaderboard_table", "models_table", "write_report"]
