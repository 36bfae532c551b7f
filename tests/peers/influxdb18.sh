#!/bin/sh
# Builds the real InfluxDB 1.8.10 from its Go module; does nothing when it is there.
#   influxdb18.sh          into .venv/influxdb18
#   influxdb18.sh DIR      into DIR
# It is the last 1.x that builds without Rust, and the first line that takes /api/v2/write too; Debian has 1.6.
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "influxdb18.sh: $1" >&2
    exit 1
}

dir=${1:-$(dirname "$0")/../../.venv/influxdb18}
[ ! -x "$dir/influxd" ] || exit 0
command -v go >/dev/null 2>&1 || fail 'there is no go here'

mkdir -p "$dir" || fail "cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
log=$new/log
limited() {
    if command -v timeout >/dev/null 2>&1; then timeout 900 "$@"; else "$@"; fi >"$log" 2>&1
}

# Built in a copy of its own module, whose go.mod names the versions of all that it imports.
name=github.com/influxdata/influxdb
mkdir "$new/get" "$new/src" && cd "$new/get" || fail "cannot write to $dir"
echo 'module get' >go.mod
limited go mod download -json $name@v1.8.10 || fail "Go could not fetch it: $(grep -m 1 Error "$log")"
source=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' "$log")
[ -n "$source" ] && cp -R --no-preserve=mode "$source/." "$new/src" && cd "$new/src" ||
    fail 'Go fetched no source'
limited go build -buildvcs=false -mod=mod -p 2 -o "$new/influxd" ./cmd/influxd ||
    fail "it could not be built: $(tail -n 1 "$log")"
mv "$new/influxd" "$dir" || fail "cannot write to $dir"
