"""`vpltool review`: a local page in which a person corrects masks.

`desk` knows the photos, what was corrected and how to undo it; `server` speaks HTTP; `training` is
the child process that trains again; `page/` is what the browser gets.
"""
