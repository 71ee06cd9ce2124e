"""What splitting gives and what it takes: three processes beside the fused pipeline, same weights."""
