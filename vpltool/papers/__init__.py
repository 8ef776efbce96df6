"""What serves the papers alone: their tables, figures, ceilings, and the comparison of all methods.

Nothing else imports this folder, so it can be taken out.
"""
