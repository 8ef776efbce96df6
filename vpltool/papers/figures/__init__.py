"""Figures 1 and 4 of the VPL paper from any workspace; no true mask is opened.

Run them by `python -m vpltool.papers.figures figure1 WORK`; `__main__.py` lists the options.
"""
