"""What gradscope costs: the parts of `bench.py` and `profile_step.py`."""
