"""A working plugin of every kind, and the tests that its distribution gets."""
