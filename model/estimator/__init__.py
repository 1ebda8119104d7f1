"""Computes and publishes free resources at the end of each slice."""
