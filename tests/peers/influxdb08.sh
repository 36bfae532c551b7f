#!/bin/sh
# Builds the real InfluxDB 0.8.8 from its Go module; does nothing when it is there.
#   influxdb08.sh          into .venv/influxdb08
#   influxdb08.sh DIR      into DIR
# Some modules it imports have vanished. Storage, log, parser and HTTP API are the original code; the collectd
# input, the admin page and all engines but leveldb are left out, and a few lines stand in for two libraries.
# What is wrong is said in one line, with exit code 1, and nothing half done is left.
set -u
fail() {
    echo "influxdb08.sh: $1" >&2
    exit 1
}

dir=${1:-$(dirname "$0")/../../.venv/influxdb08}
[ ! -x "$dir/influxd" ] || exit 0
for program in go gcc bison flex protoc; do
    command -v $program >/dev/null 2>&1 || fail "there is no $program here"
done
echo '#include <leveldb/c.h>' | gcc -E -x c - >/dev/null 2>&1 ||
    fail 'there is no leveldb/c.h here (Debian: libleveldb-dev)'

mkdir -p "$dir" || fail "cannot make $dir"
dir=$(cd "$dir" && pwd)
new=$(mktemp -d "$dir/new.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
log=$new/log
limited() {
    if command -v timeout >/dev/null 2>&1; then timeout 600 "$@"; else "$@"; fi >"$log" 2>&1
}

# It is older than Go's modules: it names no versions, and half of its imports are at hosts that are gone.
name=github.com/influxdb/influxdb
mkdir "$new/get" "$new/src" && cd "$new/get" || fail "cannot write to $dir"
echo 'module get' >go.mod
limited go mod download -json $name@v0.8.8 || fail "Go could not fetch it: $(grep -m 1 Error "$log")"
source=$(sed -n 's/.*"Dir": "\(.*\)".*/\1/p' "$log")
[ -n "$source" ] && cp -R --no-preserve=mode "$source/." "$new/src" && cd "$new/src" ||
    fail 'Go fetched no source'

rm -r statik api/collectd daemon/*syslog.go
rm datastore/storage/mdb.go datastore/storage/hyperleveldb.go datastore/storage/rocksdb.go
mv _vendor vendored                     # Go takes no folder with that _ for a package of a module
mkdir log4go goback api/collectd
cat >log4go/log4go.go <<'GO'
package log4go

import (
	"errors"
	"fmt"
	"os"
)

func say(level string, first interface{}, rest []interface{}) error {
	text := fmt.Sprint(append([]interface{}{first}, rest...)...)
	if format, ok := first.(string); ok && len(rest) > 0 {
		text = fmt.Sprintf(format, rest...)
	}
	fmt.Fprintln(os.Stderr, level, text)
	return errors.New(text)
}

func Fine(first interface{}, rest ...interface{})           {}
func Debug(first interface{}, rest ...interface{})          {}
func Info(first interface{}, rest ...interface{})           { say("INFO", first, rest) }
func Warn(first interface{}, rest ...interface{}) error     { return say("WARN", first, rest) }
func Error(first interface{}, rest ...interface{}) error    { return say("ERROR", first, rest) }
func Close()                                                {}
GO
cat >goback/goback.go <<'GO'
package goback

type Tx struct{ undo []func() error }

func Begin() *Tx { return &Tx{} }

func (t *Tx) Exec(undo func() error) { t.undo = append(t.undo, undo) }

func (t *Tx) Commit() { t.undo = nil }

func (t *Tx) Rollback() {
	for i := len(t.undo) - 1; i >= 0; i-- {
		t.undo[i]()
	}
}
GO
cat >api/collectd/api.go <<'GO'
package collectd

type Server struct{}

func NewServer(...interface{}) *Server { return &Server{} }
func (*Server) ListenAndServe()        {}
func (*Server) Close()                 {}
GO
echo 'package main; const version, gitSha = "0.8.8", "none"' >daemon/version.go
sed -i '/path\/filepath/d
    /^func setupLogging/,/^}/c func setupLogging(level, file string) {}' daemon/influxd.go
sed -i '/statik"/d; /statik\/fs"/d; /fs\.New/d
    s/http.FileServer(.*)/http.NotFoundHandler())/' admin/http_server.go
find . -name '*.go' -exec sed -i "
    s#code.google.com/p/log4go#$name/log4go#
    s#github.com/dgnorton/goback#$name/goback#
    s#$name/_vendor#$name/vendored#
    s#github.com/influxdb/go-cache#github.com/patrickmn/go-cache#
    s#code.google.com/p/gogoprotobuf/gogoproto/gogo.pb#github.com/gogo/protobuf/gogoproto#
    s#code.google.com/p/gogoprotobuf/proto#github.com/gogo/protobuf/proto#
    s#code.google.com/p/goprotobuf/proto#github.com/gogo/protobuf/proto#
    s#code.google.com/p/go.crypto/bcrypt#golang.org/x/crypto/bcrypt#" {} +
cat >go.mod <<GO
module $name

go 1.16

require (
	github.com/BurntSushi/toml v0.3.1
	github.com/bmizerany/pat v0.0.0-20170815010413-6226ea591a40
	github.com/gogo/protobuf v1.3.2
	github.com/gorilla/mux v1.8.0
	github.com/jmhodges/levigo v1.0.0
	github.com/patrickmn/go-cache v2.1.0+incompatible
	golang.org/x/crypto v0.1.0
)
GO

# Parser and protocol are generated, as its own Makefile does it. The repository around it is not its own.
build() {
    limited go build -buildvcs=false -mod=mod -p 2 -o "$new/$1" "$2"
}
build protoc-gen-gogo github.com/gogo/protobuf/protoc-gen-gogo &&
    (cd parser && limited bison -t -d query.yacc -o y.tab.c --defines=y.tab.h &&
        limited flex -o lex.yy.c -i query.lex) &&
    (cd protocol && PATH=$PATH:$new limited protoc --gogo_out=. protocol.proto) &&
    build influxd ./daemon || fail "it could not be built: $(tail -n 1 "$log")"
mv config.sample.toml "$new/influxd" "$dir" || fail "cannot write to $dir"
