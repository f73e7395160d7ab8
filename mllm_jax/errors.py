"""What the command line says in one line: bad input (code 2), a run that ends (1). Ground floor."""


class ConfigError(ValueError):
    """Bad input from a person; the message is one line: field, value and what is allowed."""


class RunError(RuntimeError):
    """What ends a run that was well begun; one line: what happened, where, what is left to use."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
