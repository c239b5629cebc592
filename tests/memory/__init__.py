"""Kernels under a simulator; a package, so that no other module called memory stands in its way."""
