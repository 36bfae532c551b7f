#!/bin/sh
# Fetches with Maven the jars that an Apache Kafka broker and its tools run from, unless they are there.
#   kafka.sh VERSION          into .venv/kafka/VERSION/libs
#   kafka.sh VERSION DIR      into DIR/libs
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "kafka.sh: $1" >&2
    exit 1
}

version=${1:-}
dir=${2:-$(dirname "$0")/../../.venv/kafka/$version}
slf4j='org.slf4j:slf4j-reload4j:1.7.36'         # these name a logger and bring none
jaxb='javax.xml.bind:jaxb-api:2.3.1'            # part of Java until 10
log4j='org.apache.logging.log4j'
case $version in
    4.3.1) scala=2.13 more="org.apache.kafka:kafka-tools:$version $log4j:log4j-slf4j-impl:2.25.4" ;;
    3.9.2) scala=2.13 more="org.apache.kafka:kafka-tools:$version $log4j:log4j-slf4j-impl:2.25.4
                            $log4j:log4j-1.2-api:2.25.4" ;;
    2.8.2 | 1.1.1) scala=2.12 more=$slf4j ;;
    0.11.0.3 | 0.10.2.2) scala=2.11 more=$jaxb ;;
    *) fail "found '$version', need 4.3.1, 3.9.2, 2.8.2, 1.1.1, 0.11.0.3 or 0.10.2.2" ;;
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
    echo '<groupId>peer</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>'
    for name in "org.apache.kafka:kafka_$scala:$version" $more; do
        artifact=${name#*:}
        echo "<dependency><groupId>${name%%:*}</groupId><artifactId>${artifact%:*}</artifactId>"
        echo "<version>${artifact#*:}</version>"
        case $artifact in kafka-tools:*)        # what the tools bring else is Connect with a web server
            echo '<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId>'
            echo '</exclusion></exclusions>' ;;
        esac
        echo '</dependency>'
    done
    echo '</dependencies></project>'
} >"$new/pom.xml"
limit=''
! command -v timeout >/dev/null 2>&1 || limit='timeout 600'
$limit mvn -q -B -f "$new/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$new/libs" \
    >"$new/log" 2>&1 ||
    fail "$version: Maven could not fetch it: $(grep -m 1 -o '\[ERROR.*' "$new/log" || tail -n 1 "$new/log")"
mv -T "$new/libs" "$dir/libs" 2>/dev/null || [ -d "$dir/libs" ] || fail "$version: cannot write to $dir"
