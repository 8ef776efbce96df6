"""Recipes: whole jobs as text files of `vpltool` lines, which run in one process."""
