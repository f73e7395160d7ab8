"""Say which file is damaged where its content is not what the report expects."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mllm_jax.common.errors import ConfigError, one_line


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Around the reading of values from a file's content.

    Raises:
        ConfigError: a value is missing or of another type, with the file's name.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 80)
        raise ConfigError(f"{path}: damaged ({reason}); restore it, or remove it") from error
