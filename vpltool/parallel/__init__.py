"""Threads, processes, batches and memory: how the work is spread."""
