#!/bin/sh
# Fetches with Maven the jars that an ActiveMQ Artemis broker runs from into .venv/artemis/libs, unless they are
# there. What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "artemis.sh: $1" >&2
    exit 1
}

version=2.42.0
here=$(cd "$(dirname "$0")" && pwd)
dir=$here/../../.venv/artemis
[ ! -d "$dir/libs" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done
mkdir -p "$dir" || fail "cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf "$new"; rmdir "$dir" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
{
    echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
    echo '<groupId>peer</groupId><artifactId>artemis</artifactId><version>1</version><dependencies>'
    for name in "org.apache.activemq:artemis-server:$version" "org.apache.activemq:artemis-stomp-protocol:$version" \
        org.slf4j:slf4j-simple:2.0.17; do
        artifact=${name#*:}
        echo "<dependency><groupId>${name%%:*}</groupId><artifactId>${artifact%:*}</artifactId>"
        echo "<version>${artifact#*:}</version></dependency>"
    done
    echo '</dependencies></project>'
} >"$new/pom.xml"
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 600'
$limit mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$new/libs" >"$new/log" 2>&1 ||
    fail "Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv -T "$new/libs" "$dir/libs" 2>/dev/null || [ -d "$dir/libs" ] || fail "cannot write to $dir"
