"""The report: one self-contained HTML page that opens from disk, without network or framework."""

from evaluation.report.comparison import write_comparison
from evaluation.report.single import write_report

__all__ = ["write_comparison", "write_report"]
