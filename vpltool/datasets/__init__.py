"""Class words, prompts, and the layouts of data sets on disk. No masks are opened here."""
