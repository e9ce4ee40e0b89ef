"""The reference executor: the very commands that are timed, run on real numbers, with every race and overflow an error."""
