"""The page of the documentation that shows what was measured: its tables are made from the JSON lines."""
