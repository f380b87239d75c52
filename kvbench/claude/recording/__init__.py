"""Records what the anthropic SDK sends and receives."""
