"""Tensors in, tensors out: the mathematics. No paths to artifacts, no typer, no printing."""
