#!/bin/sh
# Fetches with Maven the reader of Avro's own project, avro-tools, unless it is there.
#   avro.sh          into .venv/avro
#   avro.sh DIR      into DIR
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "avro.sh: $1" >&2
    exit 1
}

dir=${1:-$(dirname "$0")/../../.venv/avro}
[ ! -f "$dir/avro-tools.jar" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done

mkdir -p "$dir" || fail "cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 600'
$limit mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
    -Dartifact=org.apache.avro:avro-tools:1.12.1 -Dmdep.stripVersion=true "-DoutputDirectory=$new" >"$new/log" 2>&1 ||
    fail "Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv "$new/avro-tools.jar" "$dir/avro-tools.jar" || fail "cannot write to $dir"
