"""Built-in worlds, whose right steps are known by rule."""
