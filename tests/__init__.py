"""What ScroogeVM promises, a file per behaviour."""
