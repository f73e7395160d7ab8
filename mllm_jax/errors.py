"""Bad input from a person: one line, exit code 2. Ground floor."""


class ConfigError(ValueError):
    """Bad input from a person; the message is one line: field, value and what is allowed."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
