"""Class words, prompts, and the layouts of data sets on disk. True masks are never opened here."""
