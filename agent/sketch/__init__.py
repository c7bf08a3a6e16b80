"""Mergeable summaries of distributions, one idea a file."""
