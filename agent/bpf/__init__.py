"""The eBPF programs, and the one way they are loaded."""
