"""`python -m mllm_jax` and `mllm-jax`: the command line, see `commands.main`."""

import sys

from mllm_jax.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
