"""Reports: run -> plain summary -> HTML, Markdown, text or JSON."""

from gradscope.report.document import Report
from gradscope.report.make import comparison, fleet, overview, report, short

__all__ = ["Report", "comparison", "fleet", "overview", "report", "short"]
