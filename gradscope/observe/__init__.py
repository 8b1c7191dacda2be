"""Joins the other rooms while a training runs: receives its events, decides what to record, and analyses each step."""
