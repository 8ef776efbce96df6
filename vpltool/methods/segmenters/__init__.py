"""Methods of the kind `segmenters`, a file each."""
