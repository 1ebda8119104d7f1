"""Publishes free resources: status file, Prometheus metrics, status page and OpenStack Placement."""
