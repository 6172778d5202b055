"""Strata as an HTTP service. The only place that knows Litestar, processes and lifetimes."""
