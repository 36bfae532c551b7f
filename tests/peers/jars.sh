#!/bin/sh
# Fetches with Maven artifacts and all that they run with, unless they are there.
#   jars.sh NAME DIR GROUP:ARTIFACT:VERSION...      into DIR, which is there only when it is complete
# What is wrong is said in one line that begins with NAME, with exit code 1, and nothing half done is left.
set -u
name=$1 dir=$2
shift 2
fail() {
    echo "$name: $1" >&2
    exit 1
}

[ ! -d "$dir" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done
mkdir -p "$(dirname "$dir")" || fail "cannot make $(dirname "$dir")"
dir=$(cd "$(dirname "$dir")" && pwd)/$(basename "$dir")
new=$(mktemp -d "$dir.XXXXXX") || fail "cannot write beside $dir"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
{
    echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
    echo '<groupId>peer</groupId><artifactId>peer</artifactId><version>1</version><dependencies>'
    for artifact in "$@"; do
        rest=${artifact#*:}
        echo "<dependency><groupId>${artifact%%:*}</groupId><artifactId>${rest%:*}</artifactId>"
        echo "<version>${rest#*:}</version></dependency>"
    done
    echo '</dependencies></project>'
} >"$new/pom.xml"
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 600'
$limit mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    "-DoutputDirectory=$new/jars" >"$new/log" 2>&1 ||
    fail "Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv -T "$new/jars" "$dir" 2>/dev/null || [ -d "$dir" ] || fail "cannot write $dir"
