"""What the command line says in one line, and the exit codes. Ground floor."""

PREEMPTED = 75  # EX_TEMPFAIL: stopped by SIGTERM; saved, or not yet begun
LOST = 76  # another process of the run was lost, or all waited for too long


class ConfigError(ValueError):
    """Bad input from a person; the message is one line: field, value and what is allowed."""

    exit_code = 2


class RunError(RuntimeError):
    """What ends a run that was well begun; one line: what happened, where, what is left to use."""

    exit_code = 1


class Preempted(RunError):
    """The run was told to stop, and stopped where it can go on."""

    exit_code = PREEMPTED


def require(condition: bool, message: str) -> None:
    """Raises ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
