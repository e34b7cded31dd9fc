"""The texts of `every_rule`."""

from __future__ import annotations

OWN = """\
rules:
- {id: PLAIN, condition: evt.name = 'ptrace', output: "%ps.name %ps.pid"}
- {id: KIN, condition: evt.name = 'sched_process_exec' and ps.parent.name = 'intrusion'}
- id: STEPS
  sequence:
    maxspan: 100ms
    by: [ps.pid]
    ends-with-process: true
    steps:
    - {condition: "evt.name in ('open', 'openat')", as: opened}
    - evt.name in ('write', 'writev')
    - evt.name = 'close' and ps.name = $opened.ps.name
  output: "%1.ps.name %3.evt.name"
- id: MANY
  correlation:
    type: event_count
    timespan: 5ms
    by: [ps.pid]
    events: evt.name in ('write', 'writev')
    condition: {gte: 4}
- id: FEW
  correlation:
    {type: event_count, timespan: 1ms, by: [ps.pid], events: evt.name = 'close', condition: {lt: 3}}
- id: ORDERED
  correlation:
    type: temporal_ordered
    timespan: 20ms
    by: [ps.name]
    events: [evt.name = 'ptrace', "evt.name in ('open', 'openat')"]
- id: ABSENT
  absence:
    event: evt.name in ('open', 'openat')
    follows: evt.name = 'close'
    within: 100us
    by: ps.pid
- {id: LATER, condition: evt.name = 'alert' and args.rule = 'ABSENT'}
"""

PYTHON = """\
from kcap.detect.python_rules import Signature


class Writers(Signature):
    id = "WRITERS"
    name = "Processes that wrote, and what became of them"
    selectors = {
        "write": "evt.name in ('write', 'writev')",
        "exit": "evt.name = 'sched_process_exit'",
    }

    def __init__(self):
        self.writes = {}

    def on_match(self, ctx, selector, event):
        pid = f"{event.column('host')} {event.field('ps.pid')}"
        if selector == "write":
            self.writes[pid] = self.writes.get(pid, 0) + 1
            if self.writes[pid] == 3:
                ctx.at(event.ts_ns + 1_000_000, (pid, event.identity))
        elif pid in self.writes:
            ctx.alert(data={"pid": pid, "writes": self.writes.pop(pid)})

    def on_deadline(self, ctx, key):
        pid, third = key
        if pid in self.writes:
            data = {"pid": pid, "writes": self.writes[pid]}
            ctx.alert(title="It still writes", causes=[third], data=data)

    def on_end(self, ctx):
        ctx.alert(title="They are left", data={"pids": sorted(self.writes)})
"""

FIBRATUS = """\
name: Opens and writes
id: 5a3e1a3c-3a3c-4f0e-9a3e-000000000001
version: 1.0.0
condition: >
  sequence
  maxspan 50ms
  by ps.pid
    |evt.name in ('open', 'openat')|
    |evt.name in ('write', 'writev')|
output: "%1.ps.name wrote"
min-engine-version: 3.0.0
---
name: Attaches
id: 5a3e1a3c-3a3c-4f0e-9a3e-000000000002
version: 1.0.0
condition: evt.name = 'ptrace'
min-engine-version: 3.0.0
"""

SIGMA = """\
title: A program begins
name: begins
logsource: {category: process_creation, product: linux}
detection: {selection: {CommandLine|contains: '-'}, condition: selection}
---
title: A program of the system begins
name: of_the_system
logsource: {category: process_creation, product: linux}
detection: {selection: {Image|contains: '/bin/'}, condition: selection}
---
title: Programs begin one after the other
name: one_after_the_other
correlation:
  type: event_count
  generate: true
  rules: [begins, of_the_system]
  group-by: [User]
  timespan: 1s
  condition: {gte: 2}
"""
