"""Drawn photos with tags, exact labels and captions: data to learn from without a download."""
