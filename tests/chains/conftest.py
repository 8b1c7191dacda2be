"""Assertions of the helpers explain themselves too."""

import pytest

pytest.register_assert_rewrite("chains.truth", "chains.hold")
