"""Many tasks in worker processes of this machine, or on a Dask cluster."""
