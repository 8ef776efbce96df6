"""Methods of the kind `cams`, a file each."""
