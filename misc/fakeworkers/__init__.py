"""Simulated worker nodes: exporter pages of VMs that never existed, and every fault that a scraper must survive."""
