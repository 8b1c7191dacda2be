"""Measurements: what gradscope costs, and how often its findings are right."""
