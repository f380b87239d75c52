"""Storage formats of K and V."""
