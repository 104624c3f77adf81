"""The regression guard: a small evaluation whose measures may not fall below the floors that were recorded."""
