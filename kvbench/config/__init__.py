"""Composition of configurations, typed values, errors, and small helpers; imports nothing else of kvbench."""
