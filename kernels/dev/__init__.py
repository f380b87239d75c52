"""Tools for kernel developers: ahead-of-time compilation, a driver stub, benchmarks."""
