#!/bin/sh
# The demonstration behind `make demo`: one real capture from recording to verification.
# Usage: docs/demo.sh [KCAP]
set -eu
kcap=${1:-kcap}
capture=fixtures/first.kcap

say() { printf '\n== %s\n' "$*"; }
run() { printf '$ kcap %s\n' "$*"; "$kcap" "$@"; }
events() { "$kcap" info --json "$1" | sed -n 's/.*"events": *\([0-9][0-9]*\).*/\1/p' | head -n 1; }

# Record this machine for three seconds while some small commands run. 3 means that the capture is
# good but the kernel lost events.
record() {
    mkdir -p demo
    printf '$ kcap record --duration 3 -o demo/demo.kcap --force\n'
    "$kcap" record --duration 3 -o demo/demo.kcap --force &
    recorder=$!
    while kill -0 "$recorder" 2>/dev/null; do
        ls / >/dev/null
        sh -c 'id -un | tr a-z A-Z' >/dev/null
        sleep 0.2
    done
    wait "$recorder" || [ $? -eq 3 ]
}

if [ "$(uname -s)" = Linux ] && [ "$(id -u)" -eq 0 ]; then
    say 'Record every process start and exit on this machine'
    if record && [ "$(events demo/demo.kcap)" -gt 0 ]; then
        capture=demo/demo.kcap
    else
        say "Nothing could be recorded here (a container?); $capture takes its place"
    fi
else
    say "Recording needs root on Linux; $capture was recorded on another machine"
fi

say 'What is in it'
run info "$capture"

say 'Play it back'
run replay "$capture" | head -n 16

say 'Is it intact'
run verify "$capture"

say 'What would have been found: an intrusion that was recorded on another machine'
run detect fixtures/intrusion.kcap | head -n 24

say "$(events "$capture") events from $capture"
