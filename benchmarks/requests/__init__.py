"""Whole requests through real processes: how long they take, what they cost, what is lost when one dies."""
