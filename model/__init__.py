"""What ScroogeVM thinks: usage in, free resources out; nothing here touches a wire."""

__version__ = "0.1.0"
