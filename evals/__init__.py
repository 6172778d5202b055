"""The instrument: how good recall is, and what a context costs. `python -m evals --help`."""
