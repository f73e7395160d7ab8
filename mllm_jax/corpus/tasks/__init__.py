"""`mllm-jax corpus tasks`: LRM-LLaVA's tasks from aligned records (docs/lrm.md)."""
