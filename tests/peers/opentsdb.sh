#!/bin/sh
# Fetches what OpenTSDB runs from into .venv/opentsdb: `tsd` the daemon, `hbase` the store that it wants. Each
# is a program with a list of its own: they want other versions of the same libraries. And compiles what makes
# the daemon's tables, for the shell of HBase is no artifact of Maven.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$here/../../.venv/opentsdb
sh "$here/jars.sh" opentsdb.sh "$dir/tsd" net.opentsdb:opentsdb:2.4.1
sh "$here/jars.sh" opentsdb.sh "$dir/hbase" org.apache.hbase:hbase-server:2.5.13-hadoop3
if [ ! -e "$dir/tables/OpenTsdbTables.class" ]; then
    command -v javac >/dev/null 2>&1 || { echo 'opentsdb.sh: there is no javac here' >&2; exit 1; }
    mkdir -p "$dir/tables"
    javac -nowarn -proc:none -cp "$dir/hbase/*" -d "$dir/tables" "$here/OpenTsdbTables.java" 2>"$dir/log" ||
        { echo "opentsdb.sh: javac: $(head -n 1 "$dir/log")" >&2; exit 1; }
fi
