"""The tables of the VPL paper: `python -m vpltool.papers.tables 3 WORK`, or `make table3`."""
