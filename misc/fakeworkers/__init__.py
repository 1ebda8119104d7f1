"""Simulated worker nodes: exporter pages of VMs that do not exist, and the faults that a scraper must survive."""
