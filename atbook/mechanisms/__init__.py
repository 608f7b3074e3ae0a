"""Small working models of the attention that others build into networks: one file each.

The files hold models alone. What trains them, on a task that needs them, is in `atbook.demos`.
"""
