"""Records the traffic of the anthropic SDK."""
