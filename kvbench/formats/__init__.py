"""Storage formats of K and V: one file each."""
