"""Projections of the log: what the index and the summaries know of it, brought up to date off the
request path, and made again when they are lost."""
