"""Reads the versions of installed packages, which a result that can be repeated has to name."""

import platform
from importlib import metadata


def versions(*names: str) -> dict[str, str]:
    """Versions of Python and of these distributions; those that are not installed are left out."""
    return {"python": platform.python_version()} | installed(*names)


def installed(*names: str) -> dict[str, str]:
    """Versions of these distributions; those that are not installed are left out."""
    return {
        name: metadata.version(name) for name in names if any(metadata.distributions(name=name))
    }
