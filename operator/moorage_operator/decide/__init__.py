"""Everything that decides: pure, synchronous functions from the ledger to a plan.

One file per question. A plan says what is to be done next, never what was done: after every step
the key is decided anew from what is then known, so that a crash between any two steps changes nothing.
"""
