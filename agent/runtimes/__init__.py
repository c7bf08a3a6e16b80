"""The serving runtimes that trimtab can find and read, one a file."""
