"""One watched process of a test: watched.py PORT N I LOST_AFTER STUCK_AFTER FOLDER ACT."""

import sys
from pathlib import Path

from mllm_jax.common import interrupts
from mllm_jax.common.errors import ConfigError, RunError, say
from mllm_jax.distributed.cluster import Cluster, Timeouts
from mllm_jax.distributed.watchdog.run import watch


def main() -> int:
    coordinator, processes, process, lost_after, stuck_after, folder, act = sys.argv[1:]
    timeouts = Timeouts(float(lost_after), join_within=2.0, stuck_after=float(stuck_after))
    cluster = Cluster(coordinator, int(processes), int(process), None, timeouts)
    trainer = str(Path(__file__).with_name("trainer.py"))
    try:
        with interrupts.watched():
            return watch(cluster, [sys.executable, trainer, folder, lost_after, process, act])
    except (ConfigError, RunError) as error:
        say(str(error))
        return error.exit_code


sys.exit(main())
