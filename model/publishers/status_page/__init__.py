"""Serves the status page."""
