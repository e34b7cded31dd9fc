"""A file of settings to begin with: everything in it is a comment until somebody wants it."""

from __future__ import annotations

from typing import Final

TEXT: Final = """\
# Settings of kcap. The command line and KCAP_ variables win over what stands here;
# 'kcap config' shows what holds in the end, 'kcap config --check FILE' whether a file is right.
#
# To set something, take the '#' away from its line, and from the line of its section.
# What is secret need not stand here: write '!env NAME' for a variable, '!file PATH' for a file.

# A section has the long options of the verb that it is called like: 'kcap record --help'.
#record:
#  events: process,file,net,security
#  split-size: 256M
#  keep: 48
#  durability: 1s
#  user: nobody
#  where: ps.name != 'cron'

#run:
#  format: jsonl

#replay:
#  format: line

# Where events and alerts go, beside the output of a verb. Options may stand in the URL, or below.
#sinks:
#  - file:/var/log/kcap/alerts.jsonl?what=alerts
#  - url: https://siem.example.org/events
#    batch: 500
#    gzip: yes
#    headers: {Authorization: !env SIEM_TOKEN}
#    spool: /var/spool/kcap

# What is changed in every event before it goes anywhere, in this order.
#transformers:
#  - remove: [env]
#  - tags: {site: berlin}

# Where filaments are found, and what one may take before it ends the run.
#filament:
#  path: [/etc/kcap/filaments]
#  memory-bytes: 512M
#  call-s: 10s

# A log of what kcap says and does; full files are kept as kcap.log.1 and so on.
#logging:
#  file: /var/log/kcap/kcap.log
#  level: info
#  format: text
#  max-size: 10M
#  keep: 5
"""
"""The file."""
