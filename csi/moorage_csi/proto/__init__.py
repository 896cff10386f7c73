"""The protocols, and the stubs made from them by `make stubs`."""
