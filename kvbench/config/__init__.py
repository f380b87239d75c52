"""Composition of configurations, typed values, errors and small helpers; imports no other part of kvbench."""
