"""Our models inside of the two harnesses that others publish with: lm-eval and lmms-eval."""
