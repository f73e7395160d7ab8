"""One file (or folder, if it has work of its own) per verb: USAGE, add_arguments, run."""
