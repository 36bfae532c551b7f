#!/bin/sh
# Fetches with Maven the jars that Apache Druid runs from, unless they are there: all of its services, the ZooKeeper they
# need, and the extension that reads Kafka. The distribution as a whole is not on Maven Central.
#   druid.sh VERSION          into .venv/druid/VERSION/libs
#   druid.sh VERSION DIR      into DIR/libs
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "druid.sh: $1" >&2
    exit 1
}

version=${1:-}
dir=${2:-$(dirname "$0")/../../.venv/druid/$version}
case $version in
    33.0.0) ;;                          # of the others few have all of it in one version
    *) fail "found '$version', need 33.0.0" ;;
esac
[ ! -d "$dir/libs" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "$version: there is no $program here"
done

mkdir -p "$dir" || fail "$version: cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "$version: cannot write to $dir"
trap 'rm -rf "$new"; rmdir "$dir" 2>/dev/null' EXIT
trap 'exit 1' HUP INT TERM
{
    echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
    echo '<groupId>peer</groupId><artifactId>druid</artifactId><version>1</version><dependencies>'
    for name in org.apache.druid:druid-services \
                org.apache.druid.extensions:druid-kafka-indexing-service; do
        echo "<dependency><groupId>${name%%:*}</groupId><artifactId>${name#*:}</artifactId>"
        echo "<version>$version</version><exclusions><exclusion>"
        echo '<groupId>org.hyperic</groupId><artifactId>sigar</artifactId>'     # in no central repository
        echo '</exclusion></exclusions></dependency>'
    done
    echo '</dependencies></project>'
} >"$new/pom.xml"
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 900'
MAVEN_OPTS=-Xmx1g $limit mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies \
    "-DoutputDirectory=$new/libs" -DincludeScope=runtime >"$new/log" 2>&1 ||
    fail "$version: Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv -T "$new/libs" "$dir/libs" 2>/dev/null || [ -d "$dir/libs" ] || fail "$version: cannot write to $dir"
