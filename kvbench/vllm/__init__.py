"""vLLM as a comparator, driven over HTTP. Imports no torch."""
