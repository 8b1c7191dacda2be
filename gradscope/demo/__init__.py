"""`gradscope demo`: small networks trained on real data, and what gradscope saw in them.

It uses the public names alone, as a user's own script would.
"""
