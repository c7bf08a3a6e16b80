"""What the agent costs: `make bench-agent`. How it is measured, and how to read it: docs/overhead.md."""
