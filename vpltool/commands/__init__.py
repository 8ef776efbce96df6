"""Commands about the tool itself: methods, presets, recipes, the state of a workspace."""
