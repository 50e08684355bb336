"""What people read after a run: tables for the terminal and report.html, one file that needs no network.

uri = write_report(run_uri)
console.print(leaderboard_table(leaderboard))
"""

from tlray.report.html import write_report
from tlray.report.models_table import models_table
from tlray.report.ranking import agreement_table, read_found
from tlray.report.tables import evaluation_table, leaderboard_table

__all__ = ["agreement_table", "evaluation_table", "leaderboard_table", "models_table", "read_found", "write_report"]
