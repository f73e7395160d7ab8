"""Shows progress bars for work that may take long: on a terminal only, and only after a while."""

from typing import Any

from tqdm import tqdm


def bar(*items: Any, **options: Any) -> Any:
    """tqdm with these options; nothing is left of it at the end."""
    return tqdm(*items, delay=2, leave=False, disable=None, **options)
