"""Says which instance is degraded, and since when."""
