"""One revision a file, each a step from the one before. A released one is never changed."""
