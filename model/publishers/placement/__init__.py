"""Publishes allocation ratios to OpenStack Placement."""
