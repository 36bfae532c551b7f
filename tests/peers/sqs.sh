#!/bin/sh
# Fetches with Maven the jars that ElasticMQ, a queue server with the API of SQS, runs from, unless they are there.
#   sqs.sh          into .venv/elasticmq/libs
#   sqs.sh DIR      into DIR/libs
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "sqs.sh: $1" >&2
    exit 1
}

dir=${1:-$(dirname "$0")/../../.venv/elasticmq}
[ ! -d "$dir/libs" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done

mkdir -p "$dir" || fail "cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf "$new"; rmdir "$dir" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
cat >"$new/pom.xml" <<'XML'
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>peer</groupId><artifactId>sqs</artifactId><version>1</version><dependencies><dependency>
<groupId>org.elasticmq</groupId><artifactId>elasticmq-server_2.13</artifactId><version>1.6.11</version>
</dependency></dependencies></project>
XML
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 600'
$limit mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$new/libs" \
    >"$new/log" 2>&1 ||
    fail "Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv -T "$new/libs" "$dir/libs" 2>/dev/null || [ -d "$dir/libs" ] || fail "cannot write to $dir"
