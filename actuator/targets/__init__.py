"""Where snapshots go: load balancers and feeds, one a file."""
