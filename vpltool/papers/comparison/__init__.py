"""All methods over a workspace in one table: `python -m vpltool.papers.comparison WORK`."""
