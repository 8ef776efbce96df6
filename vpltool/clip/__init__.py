"""Finding and loading a CLIP: its name, its weights, its towers."""
