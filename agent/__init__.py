"""Runs on every serving host: samples signals, closes windows, spools and publishes them."""
