"""What was billed, from files that hold usage and no prompts."""
