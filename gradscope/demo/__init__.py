"""`gradscope demo`: small networks trained on real data, and their records.

The demo uses public names only, like a user's own script.
"""
