"""Drawn photos with tags, exact labels and captions: something to learn from without a download."""
