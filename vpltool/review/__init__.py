"""`vpltool review`: a local page in which a person corrects masks.

`desk` manages the photos, corrections and undoing; `server` serves HTTP; `training` is the child
process that retrains; `page/` holds the files for the browser.
"""
