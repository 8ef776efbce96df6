"""The tables of the VPL paper over a workspace, with the paper's number beside the measured one.

Run them by `python -m vpltool.papers.tables 3 WORK`; `__main__.py` lists the options.
"""
