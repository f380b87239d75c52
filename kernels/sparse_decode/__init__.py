"""Decode attention over a compact or selected KV cache: `naive`, `portable` (torch) and `cpu` (compiled)."""
