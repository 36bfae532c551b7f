#!/bin/sh
# Fetches what KairosDB runs from, with the H2 database in it, into .venv/kairosdb, unless it is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# Its own list lacks two: without Guice's servlets it does not start, without JAXB no page answers.
sh "$here/jars.sh" kairosdb.sh "$here/../../.venv/kairosdb/libs" org.kairosdb:kairosdb:1.3.0-1 \
    com.sun.jersey.contribs:jersey-guice:1.19.4 com.sun.xml.bind:jaxb-core:2.3.0
