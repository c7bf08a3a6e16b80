"""The collector at fleet scale: recorded windows, simulated agents that replay them, and the peers."""
