"""Snapshots of calls, joined into chains, in one canonical layout."""
