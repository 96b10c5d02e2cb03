"""Run a model and watch it: expose values, feed pictures, collect maps, prove that nothing changed."""
