"""Integrations of gradscope with training frameworks and trackers: one module for each."""
