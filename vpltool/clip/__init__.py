"""Obtaining a CLIP: its name, its weights, its towers."""
