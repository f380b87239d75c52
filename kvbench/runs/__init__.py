"""A run: its configuration, its plan, the record of a cell, and the store."""
