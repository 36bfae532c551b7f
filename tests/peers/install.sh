#!/bin/sh
# Installs the Debian packages that the real servers come from, only those that are missing, and gets or builds
# the servers that Debian does not have.
#   install.sh           what the tests in this folder speak to
#   install.sh bench     the agents that `make bench` measures beside ours
# What cannot be had is listed, and the exit code is 0 all the same: the tests skip by name and
# reason, or fail when REQUIRE_PEERS=1.
set -u
mode=${1:-peers}
case $mode in
    peers)
        packages='graphite-carbon openssl tinyproxy flex bison libleveldb-dev protobuf-compiler
            nats-server influxdb victoria-metrics
            avro-bin redis-server rabbitmq-server activemq
            iproute2 prometheus-node-exporter runc podman user-mode-linux busybox-static lxcfs
            dmsetup e2fsprogs sysstat'
        command -v javac >/dev/null 2>&1 || packages="$packages default-jdk-headless"   # for what Maven brings
        command -v mvn >/dev/null 2>&1 || packages="$packages maven"
        command -v go >/dev/null 2>&1 || packages="$packages golang-go"                 # for InfluxDB 0.8, 1.8
        command -v gcc >/dev/null 2>&1 || packages="$packages gcc libc6-dev" ;;
    bench) packages='collectd-core prometheus-node-exporter iproute2' ;;
    *) echo "install.sh: found $mode, need peers or bench" >&2; exit 2 ;;
esac

# Debian's node_exporter is some years old: where there is a Go compiler, a newer one too.
if [ $mode = bench ] && command -v go >/dev/null 2>&1 && [ ! -x .venv/bin/node_exporter ]; then
    GOBIN=$PWD/.venv/bin GOFLAGS="-ldflags=-X=github.com/prometheus/common/version.Version=1.12.1" \
        go install github.com/prometheus/node_exporter@v1.12.1 2>/dev/null ||
        echo 'install.sh: no newer node_exporter could be built: the one of Debian is measured'
fi

here=$(dirname "$0")
servers() {
    [ "$mode" = peers ] || return 0
    for version in 4.3.1 3.9.2 2.8.2 1.1.1 0.11.0.3 0.10.2.2; do
        sh "$here/kafka.sh" $version
    done
    for server in influxdb08 influxdb18 avro sqs kairosdb opentsdb 'druid 33.0.0' jeromq artemis; do
        set -- $server
        [ ! -f "$here/$1.sh" ] || sh "$here/$1.sh" ${2:-}
    done
}

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing() {
    for package in $packages; do
        installed "$package" || printf ' %s' "$package"
    done
}

stop_here() {
    echo "install.sh: could not install$(missing): $1"
    servers
    exit 0
}

if [ -z "$(missing)" ]; then
    servers
    exit 0
fi
command -v apt-get >/dev/null 2>&1 || stop_here 'there is no apt-get here'
root=''
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || stop_here 'neither root nor sudo without a password'
    root='sudo -n'
fi

# A package must not start its server: the tests start their own, on ports and folders of theirs.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$root rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null && $root chmod 755 $policy
fi

apt() {
    $root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1
}

known() {
    for package in "$@"; do
        apt-cache show "$package" >/dev/null 2>&1 || return 1
    done
}

log=$(mktemp)
# shellcheck disable=SC2046
known $(missing) || apt update
for package in $(missing); do           # one by one: one that cannot be had takes no other along
    apt install -y --no-install-recommends "$package" && continue
    apt update && apt install -y --no-install-recommends "$package" && continue
    echo "install.sh: $package: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
done
rm -f "$log"
[ -z "$(missing)" ] || stop_here 'see above'
servers
exit 0
