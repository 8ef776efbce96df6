"""`vpltool review`: a local page in which a person corrects masks.

`desk` knows the photos, what was corrected and how to undo it; `server` speaks HTTP; `retrain` is
the child process that trains again; `page/` is what the browser gets. `work` is the only file here
that knows the rest of vpltool.
"""
