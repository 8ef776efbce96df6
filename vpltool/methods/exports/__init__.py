"""Methods of the kind `exports`, a file each."""
