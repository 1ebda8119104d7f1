"""ScroogeVM: usage in, free resources out. The modules of this folder do no I/O; the packages below do."""

__version__ = "0.1.0"
