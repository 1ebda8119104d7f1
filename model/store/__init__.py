"""Stores samples in SQLite or InfluxDB."""
