"""Versions of what is installed."""

import platform

import jax

from mllm_jax.common.versions import installed, versions


def test_what_is_not_installed_is_left_out():
    assert installed("jax", "no-such-package") == {"jax": jax.__version__}
    assert versions("jax") == {"python": platform.python_version(), "jax": jax.__version__}
