"""Stands before pandas on the path: as installed without the extra that needs it.

pyarrow imports pandas wherever it is installed, and that takes 0.15 s of a command's start.
"""

raise ImportError("kcap is measured without its extras")
