"""Compares strategies with several parameters on many traces."""
