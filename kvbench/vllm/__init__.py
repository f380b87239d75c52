"""vLLM as a comparator, driven over HTTP; imports no torch."""
