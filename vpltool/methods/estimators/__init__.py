"""Methods of the kind `estimators`, a file each."""
