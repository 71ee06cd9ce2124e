"""Media files: how frames become a video that plays."""
