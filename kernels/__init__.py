"""The operations that methods call; one folder per operation."""
