"""What stages share: photos, inputs, headers, and the frame of the work; it knows no stage."""
