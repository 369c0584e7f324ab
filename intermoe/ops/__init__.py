"""The mathematics of the InterMoE block, one file per step: equation, argument checks, reference.

``route`` -> ``select`` -> ``experts`` -> ``combine``; ``moe`` chains them.
"""
