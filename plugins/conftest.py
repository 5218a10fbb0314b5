"""The tests of the distributions in this folder find them without anybody installing them."""

from support.distributions import find_distributions

find_distributions()
