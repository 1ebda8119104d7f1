"""Scrapes worker nodes and writes node and VM metrics into the store."""
