"""The measuring rig behind `tools/bench`.

Purpose: say how fast p2pdb is next to what an administrator would otherwise use, in one run on one machine.

Method: six network namespaces on one bridge stand for six servers. Every system is started in them, one system at a
time, measured, and ended. All clocks are CLOCK_MONOTONIC of the one machine, so a stamp taken in one namespace
compares with a stamp taken in another. Clients that must not disturb what they measure are small C programs
(`native/`), compiled on the spot; the rest is plain Python.
"""
