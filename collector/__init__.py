"""Keeps every window exactly once in DuckDB, and answers questions about them."""
