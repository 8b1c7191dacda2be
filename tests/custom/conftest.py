"""Assertions of the helpers explain themselves too."""

import pytest

pytest.register_assert_rewrite("custom.truth", "custom.hold")
