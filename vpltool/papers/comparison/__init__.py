"""All methods over one workspace in one table, with the published numbers beside.

Run it by `python -m vpltool.papers.comparison WORK`, or `make compare WORKSPACE=WORK`.
"""
