#!/bin/sh
# Fetches JeroMQ, ZeroMQ written in Java, with Maven into .venv/jeromq, and compiles the reader of its test with a
# compiler that needs no JDK; unless it is there.
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "jeromq.sh: $1" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$here/../../.venv" || fail 'there is no folder .venv'
dir=$(cd "$here/../../.venv" && pwd)/jeromq
[ ! -d "$dir" ] || exit 0
for program in java mvn; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done
new=$(mktemp -d "$dir.XXXXXX") || fail "cannot write to $(dirname "$dir")"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$new/pom.xml" <<'POM'
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>peer</groupId><artifactId>jeromq</artifactId><version>1</version><dependencies>
<dependency><groupId>org.zeromq</groupId><artifactId>jeromq</artifactId><version>0.6.0</version></dependency>
<dependency><groupId>org.eclipse.jdt</groupId><artifactId>ecj</artifactId><version>3.26.0</version></dependency>
</dependencies></project>
POM
mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies -DoutputDirectory="$new/libs" >"$new/log" 2>&1 ||
    fail "Maven: $(grep -m 1 ERROR "$new/log")"
java -jar "$new/libs/ecj-3.26.0.jar" -8 -cp "$new/libs/jeromq-0.6.0.jar" -d "$new/classes" \
    "$here/JeromqReader.java" >"$new/log" 2>&1 || fail "the reader does not compile: $(head -n 3 "$new/log")"
chmod 755 "$new" && mv -T "$new" "$dir" || fail "cannot write to $dir"
