"""Reports that people keep: run -> plain summary -> HTML, Markdown, text or JSON."""

from gradscope.report.document import Report
from gradscope.report.make import card, comparison, fleet, overview, report, short

__all__ = ["Report", "card", "comparison", "fleet", "overview", "report", "short"]
