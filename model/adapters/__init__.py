"""Where ScroogeVM meets the world: one module per counterpart."""
