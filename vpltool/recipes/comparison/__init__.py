"""All methods over one workspace in one table, with the published numbers beside.

Run it by `python -m vpltool.recipes.comparison WORK`, or `make compare WORKSPACE=WORK`.
"""
