"""The commands of ``celery leader``, one file each.

A new command is a file here with a function that has ``@command`` and the command's name, and a
line in ``ops/cli.py``. ``base`` has what all commands share, ``orders`` what those share that
move leaders.
"""
